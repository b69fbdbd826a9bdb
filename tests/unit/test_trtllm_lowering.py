"""Options, algorithms, converters and commands of engines, example by example."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lmi_build.backends.containers import Container, Mount, docker_run
from lmi_build.backends.trtllm.algorithms import (
    algorithm_problems,
    algorithm_rows,
    choose,
)
from lmi_build.backends.trtllm.arguments import build_arguments, builds
from lmi_build.backends.trtllm.bounds import (
    Terms,
    bounds_problems,
    explain,
    lower_bounds,
)
from lmi_build.backends.trtllm.command import (
    trtllm_build,
)
from lmi_build.backends.trtllm.conversion import (
    conversion_problems,
    converter_rows,
    lower_conversion,
)
from lmi_build.backends.trtllm.lowering import EnginePlan
from lmi_build.backends.trtllm.models import trtllm_models
from lmi_build.backends.trtllm.options import (
    OWNED,
    REFUSED,
    option_arguments,
    option_problems,
)
from lmi_build.backends.trtllm.weights import ALGORITHMS
from lmi_build.catalog.instances import instance
from lmi_build.catalog.releases import release
from lmi_build.catalog.trtllm_flags import build_flags, flag_rows
from lmi_build.values.bounds import Bounds
from trtllm_recipes import LLAMA, SCHEMES, engine_releases, lowered, scheme

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue

LMI_30 = release("djl-tensorrtllm-0.30.0")
LONG = Bounds(max_input_len=60_000, max_output_len=1000, max_batch_size=4)


def one_problem(options: dict[str, JSONValue], row: str = "0.12") -> tuple[str, str]:
    """Code and hint of the only problem."""
    (problem,) = option_problems(options, row)
    assert problem.path == f"compile.options.{next(iter(options))}"
    return problem.code, problem.hint


@pytest.mark.parametrize(
    ("options", "row", "code", "hint"),
    [
        ({"gemm_plugins": "auto"}, "0.12", "unknown-option", "`gemm_plugin`?"),
        ({"zzz": 1}, "0.12", "unknown-option", "remove the line"),
        ({"max_bath_size": 4}, "0.12", "unknown-option", "`bounds.max_batch_size`"),
        ({"kv_cache_typ": "paged"}, "0.12", "unknown-option", "remove the line"),
        ({"enable_xqa": "enable"}, "0.16", "unknown-option", "`0.15`"),
        ({"max_multimodal_len": 8}, "0.12", "unknown-option", "max_prompt_embedding"),
        ({"gemm_plugin": "float8"}, "0.12", "bad-option", "gemm_plugin: disable"),
        ({"context_fmha": True}, "0.12", "bad-option", "context_fmha: enable"),
        ({"gather_context_logits": "yes"}, "0.12", "bad-option", "true"),
        ({"tokens_per_block": "64"}, "0.12", "bad-option", "tokens_per_block: 64"),
        ({"tokens_per_block": True}, "0.12", "bad-option", "tokens_per_block: 64"),
        ({"max_input_len": 8}, "0.12", "owned-option", "bounds.max_input_len"),
        ({"max_seq_len": 8}, "0.8", "owned-option", "bounds.max_output_len"),
        ({"tp_size": 2}, "0.12", "owned-option", "compile.tensor_parallel_size"),
        ({"weight_only_precision": "int8"}, "0.9", "owned-option", "quantize.method"),
        ({"build_config": "b.json"}, "0.12", "owned-option", "remove the line"),
        ({"kv_cache_type": "continuous"}, "0.16", "owned-option", "remove the line"),
    ],
)
def test_wrong_options(
    options: dict[str, JSONValue], row: str, code: str, hint: str
) -> None:
    """Each has one problem whose hint is what to write."""
    found_code, found_hint = one_problem(options, row)

    assert found_code == f"compile.{code}"
    assert hint in found_hint


def test_options_of_the_release_pass() -> None:
    """Native options go through as they are, sorted; a switch is one word or none."""
    options: dict[str, JSONValue] = {
        "tokens_per_block": 32,
        "gather_context_logits": True,
        "weight_sparsity": False,
        "gemm_plugin": "float16",
    }

    assert list(option_problems(options, "0.12")) == []
    assert option_arguments(options, "0.12") == (
        "--gather_context_logits",
        "--gemm_plugin",
        "float16",
        "--tokens_per_block",
        "32",
    )


def test_a_list_is_a_list_of_words() -> None:
    """Options that take many words take them one after the other."""
    options: dict[str, JSONValue] = {"lora_target_modules": ["attn_q", "attn_v"]}

    assert list(option_problems(options, "0.12")) == []
    assert option_arguments(options, "0.12")[-2:] == ("attn_q", "attn_v")


def test_what_is_owned_exists_somewhere() -> None:
    """No entry of the tables stands for an option that no release has."""
    names = {name for row in flag_rows().values() for name in row.flags}
    names |= {
        alias
        for row in flag_rows().values()
        for flag in row.flags.values()
        for alias in flag.aliases
    }

    assert (set(OWNED) | set(REFUSED)) - names == set()


def test_every_path_option_is_refused() -> None:
    """A file that an option names would be an input that no key knows."""
    words = ("_dir", "_file", "_cache", "_config")
    for row in flag_rows().values():
        paths = {
            name
            for name, flag in row.flags.items()
            if flag.kind == "str" and name.endswith(words)
        }
        assert paths <= set(REFUSED), row.name


def test_a_recipe_s_option_replaces_ours() -> None:
    """What the recipe says about a plugin is said once."""
    terms = Terms(flags="0.12", options={"gemm_plugin": "disable"})
    engine = lower_bounds(LONG, terms)

    words = build_arguments(engine, terms, dtype="float16")

    assert words.count("--gemm_plugin") == 1
    assert words[words.index("--gemm_plugin") + 1] == "disable"


@pytest.mark.parametrize(("row", "plugin"), [("0.10", "bfloat16"), ("0.11", "auto")])
def test_plugins_have_the_model_s_dtype(row: str, plugin: str) -> None:
    """Up to 0.10 the default is float16 whatever the model is."""
    terms = Terms(flags=row, options={})
    engine = lower_bounds(LONG, terms)

    words = build_arguments(engine, terms, dtype="bfloat16", moe=True)

    for name in ("gpt_attention_plugin", "gemm_plugin", "moe_plugin"):
        assert words[words.index(f"--{name}") + 1] == plugin


def test_a_long_prompt_is_computed_in_pieces() -> None:
    """Above what a pass holds, fused attention over paged context comes in."""
    engine = lower_bounds(LONG, Terms(flags="0.12", options={}))

    assert engine.max_num_tokens == 8192
    assert engine.chunked_context
    assert engine.paged_context_fmha


@pytest.mark.parametrize(
    ("row", "cache", "paged"),
    [("0.18", "auto", False), ("0.21", "auto", True), ("0.21", "int8", False)],
)
def test_paged_context_follows_the_release(
    row: str, cache: str, *, paged: bool
) -> None:
    """From 0.20 on it is on by default, and off again where the builder refuses it."""
    terms = Terms(flags=row, options={}, kv_cache_dtype=cache)
    bounds = Bounds(max_input_len=100, max_output_len=100)

    engine = lower_bounds(bounds, terms)
    words = build_arguments(engine, terms, dtype="float16")

    assert engine.paged_context_fmha == paged
    said = words[words.index("--use_paged_context_fmha") + 1]
    assert said == ("enable" if paged else "disable")


def test_an_int8_cache_forbids_pieces() -> None:
    """The builder refuses both together, so the whole prompt is one pass."""
    terms = Terms(flags="0.12", options={}, kv_cache_dtype="int8")

    engine = lower_bounds(LONG, terms)

    assert engine.max_num_tokens == 60_000
    assert not engine.paged_context_fmha
    assert any("tensor volume" in line for line in explain(LONG, terms))
    asked = Terms(
        flags="0.12",
        options={"use_paged_context_fmha": "enable"},
        kv_cache_dtype="int8",
    )
    assert [problem.path for problem in bounds_problems(LONG, asked)] == [
        "compile.options.use_paged_context_fmha"
    ]


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (10**9, {}, "would build 244000"),
        (8, {}, "would build 64"),
        (100, {"use_paged_context_fmha": "disable"}, "cannot be computed in pieces"),
        (100, {"context_fmha": "disable"}, "would build 60000"),
    ],
)
def test_refused_packed_tokens(
    given: int, options: dict[str, JSONValue], words: str
) -> None:
    """The message has the number that the builder would have taken."""
    bounds = replace(LONG, max_num_tokens=given)

    (problem,) = bounds_problems(bounds, Terms(flags="0.12", options=options))

    assert words in problem.message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"opt_num_tokens": 10**6}, "from 1 to `max_num_tokens`"),
        ({"opt_num_tokens": 4, "multiple_profiles": "enable"}, "exclude"),
    ],
)
def test_refused_optimal_tokens(options: dict[str, JSONValue], words: str) -> None:
    """The builder stops on one and changes the other."""
    (problem,) = bounds_problems(LONG, Terms(flags="0.12", options=options))

    assert words in problem.message


def test_several_profiles_choose_their_own_optimum() -> None:
    """`opt_num_tokens` beside `multiple_profiles` would stop the builder."""
    terms = Terms(flags="0.12", options={"multiple_profiles": "enable"})

    assert lower_bounds(LONG, terms).opt_num_tokens is None


@pytest.mark.parametrize(
    ("method", "quant_algo", "zeros"),
    [
        ("none", "", False),
        ("gptq", "W4A16_AWQ", False),
        ("awq", "W4A16_AWQ", True),
        ("int8", "W8A16", False),
        ("w8a8-dynamic", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN", False),
        ("w8a8-static", "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN", False),
        ("w8a8-static-tensor", "W8A8_SQ_PER_TENSOR_PLUGIN", False),
    ],
)
def test_algorithms_of_llama(method: str, quant_algo: str, *, zeros: bool) -> None:
    """Each method has its algorithm, in every release that builds engines."""
    model = trtllm_models()["LlamaForCausalLM"]
    for row in engine_releases():
        found = list(algorithm_problems(SCHEMES[method], model, row))
        algorithm = choose(SCHEMES[method], model, row)

        assert found == []
        assert algorithm.quant_algo == quant_algo
        assert algorithm.writer == "ours"
        assert algorithm.has_zero_point == zeros


def test_what_we_write_has_a_layout() -> None:
    """Every algorithm called ours is one that the writer of linears knows."""
    ours = {name for name, row in algorithm_rows().items() if row.ours}

    assert {"" if name == "NONE" else name for name in ours} <= set(ALGORITHMS)


@pytest.mark.parametrize(
    ("made", "path", "hint"),
    [
        (scheme("gptq", 4, group_size=32), "quantize.group_size", "`64` or `128`"),
        (scheme("gptq", 4, group_size=128, act_order=True), "quantize", "desc_act"),
        (scheme("gptq", 8, group_size=128), "quantize", "method: int8"),
        (scheme("gptq", 3, group_size=128), "quantize", "bits: 4"),
        (
            scheme("float-quantized", 8, weight_dtype="float"),
            "quantize",
            "artifact: hf-quantized",
        ),
        (
            scheme("int-quantized", 4, activation_bits=8, activation_dtype="int"),
            "quantize",
            "activations: none",
        ),
    ],
)
def test_schemes_without_a_kernel(made: object, path: str, hint: str) -> None:
    """They are refused with the way out."""
    model = trtllm_models()["LlamaForCausalLM"]

    (problem,) = algorithm_problems(made, model, LMI_30)  # type: ignore[arg-type]

    assert problem.unsupported
    assert problem.path == path
    assert hint in problem.hint


def test_an_architecture_without_the_method() -> None:
    """Mixtral has no four-bit kernels for its experts."""
    model = trtllm_models()["MixtralForCausalLM"]

    (problem,) = algorithm_problems(SCHEMES["awq"], model, LMI_30)

    assert problem.path == "quantize.method"
    assert "`none` or `int8`" in problem.hint


def test_an_architecture_that_came_later() -> None:
    """The list of what the release does have is in the hint."""
    model = trtllm_models()["Qwen2ForCausalLM"]

    (problem,) = algorithm_problems(
        SCHEMES["none"], model, release("djl-tensorrtllm-0.28.0")
    )

    assert "`LlamaForCausalLM`" in problem.hint


@pytest.mark.parametrize(
    ("target", "cache", "words"),
    [
        ("ml.inf2.xlarge", "auto", "no NVIDIA GPU"),
        ("ml.g5.2xlarge", "fp8", "needs compute capability 8.9"),
        ("ml.g6.2xlarge", "fp8", ""),
        ("ml.g5.2xlarge", "int8", ""),
    ],
)
def test_gpus(target: str, cache: str, words: str) -> None:
    """The target's GPU must have what the numbers need."""
    model = trtllm_models()["LlamaForCausalLM"]
    made = replace(SCHEMES["int8"], kv_cache_dtype=cache)

    found = list(algorithm_problems(made, model, LMI_30, instance(target)))

    assert len(found) == bool(words)
    assert all(words in problem.message for problem in found)


@pytest.mark.parametrize(
    ("name", "method", "dtype", "path"),
    [
        ("tensorrt-llm-0.10.0", "w8a8-dynamic", "bfloat16", "model.dtype"),
        ("tensorrt-llm-0.10.0", "w8a8-dynamic", "float16", ""),
        ("tensorrt-llm-0.11.0", "w8a8-dynamic", "bfloat16", ""),
        ("tensorrt-llm-0.10.0", "gptq", "bfloat16", ""),
        ("tensorrt-llm-0.16.0", "gptq", "float32", "model.dtype"),
        ("tensorrt-llm-0.10.0", "none", "float32", ""),
    ],
)
def test_dtypes_of_kernels(name: str, method: str, dtype: str, path: str) -> None:
    """SmoothQuant's plugins know bfloat16 from 0.11 on."""
    model = trtllm_models()["LlamaForCausalLM"]

    found = algorithm_problems(SCHEMES[method], model, release(name), dtype=dtype)

    assert [problem.path for problem in found] == ([path] if path else [])


def test_a_gpu_older_than_the_release() -> None:
    """TensorRT-LLM 0.21 is not made for a T4."""
    model = trtllm_models()["LlamaForCausalLM"]
    row = release("djl-tensorrtllm-0.33.0")

    (problem,) = algorithm_problems(
        SCHEMES["none"], model, row, instance("ml.g4dn.xlarge")
    )

    assert "7.5" in problem.message


def test_the_converter_takes_no_foreign_calibration() -> None:
    """What NVIDIA's script would calibrate itself is not what the recipe says."""
    model = trtllm_models()["BaichuanForCausalLM"]
    static = replace(SCHEMES["w8a8-static"])
    cache = replace(SCHEMES["none"], kv_cache_dtype="int8")

    (problem,) = algorithm_problems(static, model, LMI_30)
    (other,) = algorithm_problems(cache, model, LMI_30)

    assert problem.path == "quantize.method"
    assert other.path == "quantize.kv_cache_dtype"


def test_every_family_has_a_converter() -> None:
    """Families of models.toml and of converters.toml are the same."""
    families = {model.family for model in trtllm_models().values()}

    assert families == set(converter_rows())


def test_gptq_goes_through_an_option_of_its_own() -> None:
    """One file beside a configuration that does not speak of quantization."""
    model = trtllm_models()["BaichuanForCausalLM"]
    algorithm = choose(SCHEMES["gptq"], model, LMI_30)

    call = lower_conversion(
        model,
        algorithm,
        LMI_30,
        replace(LLAMA, vocab_size=64000, hidden_size=5120),
        dtype="float16",
        tensor_parallel_size=2,
        pipeline_parallel_size=1,
    )

    assert call.quantized
    assert call.arguments[-2:] == ("--quant_ckpt_path", "source/model.safetensors")
    assert "v1_13b" in call.arguments


def test_a_converter_that_does_not_split() -> None:
    """Phi's script of 0.9 writes one rank."""
    model = trtllm_models()["PhiForCausalLM"]
    row = release("djl-tensorrtllm-0.28.0")
    algorithm = choose(SCHEMES["none"], model, row)

    (problem,) = conversion_problems(
        model, algorithm, row, tensor_parallel_size=2, pipeline_parallel_size=1
    )

    assert problem.path == "compile.tensor_parallel_size"


def test_a_plan_survives_json() -> None:
    """Parameters cross a process and come back the same."""
    for architecture in ("LlamaForCausalLM", "BaichuanForCausalLM"):
        plan = lowered(LMI_30, "gptq", architecture=architecture)

        assert EnginePlan.from_json(plan.to_json()) == plan


def test_the_key_holds_what_the_bytes_hang_on() -> None:
    """Another bound, release or GPU is another engine; another machine size is not."""
    plan = lowered(LMI_30).to_json()

    assert lowered(LMI_30, target="ml.g5.2xlarge").to_json() == plan
    assert lowered(LMI_30, target="ml.g6.2xlarge").to_json() != plan
    assert lowered(LMI_30, bounds=LONG).to_json() != plan
    assert lowered(release("djl-tensorrtllm-0.29.0")).to_json() != plan


def test_the_first_release_reads_and_writes_one_cache() -> None:
    """0.8 has `--timing_cache`, later ones one option for each way."""
    for row, names in (("0.8", ["timing_cache"]), ("0.9", ["input_timing_cache"])):
        terms = Terms(flags=row, options={})
        (build,) = builds(lower_bounds(LONG, terms), terms, dtype="float16")
        words = trtllm_build(build, build_flags(row), workers=1)
        for name in names:
            assert words[words.index(f"--{name}") + 1] == "cache/timing.cache"


def test_a_container_gets_what_it_needs() -> None:
    """GPUs, memory, user, mounts; the image's server does not start."""
    words = docker_run(
        Container(
            image="repo@sha256:0",
            mounts=(
                Mount(source="/a b", target="/work", writable=True),
                Mount(source="/c", target="/work/checkpoint"),
            ),
            user="1000:1000",
            gpus="0,1",
            environment={"HOME": "/work/home"},
            name="build",
        ),
        ["trtllm-build", "--workers", "2"],
    )

    assert words[:3] == ["docker", "run", "--rm"]
    assert words[words.index("--gpus") + 1] == '"device=0,1"'
    assert "type=bind,source=/a b,target=/work" in words
    assert "type=bind,source=/c,target=/work/checkpoint,readonly" in words
    assert words[words.index("--user") + 1] == "1000:1000"
    assert words[-5:] == [
        "--entrypoint",
        "trtllm-build",
        "repo@sha256:0",
        "--workers",
        "2",
    ]


@pytest.mark.parametrize("path", ["relative", "/a,b", '/a"b', "/a\nb"])
def test_paths_that_are_no_mounts(path: str) -> None:
    """A comma would begin another field of the mount."""
    mount = Mount(source=path, target="/work")
    box = Container(image="image", mounts=(mount,), user="1:1")

    with pytest.raises(ValueError, match="cannot be mounted"):
        docker_run(box, ["true"])
