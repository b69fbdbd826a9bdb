"""What the built-in quantizer refuses before any work, and what it promises."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from calibration_data import pinned
from lmi_build import registry
from lmi_build.checkpoint.header import read_header
from lmi_build.plan.planner import check_providers
from lmi_build.quantizers.builtin import PROVIDER
from lmi_build.quantizers.targets import select
from lmi_build.spi import Quantizer
from lmi_build.values.bounds import Bounds
from lmi_build.values.model import ModelFacts, TensorFact, geometry_from_config
from lmi_build.values.recipe import (
    CalibrationSpec,
    CompileSpec,
    ModelSpec,
    PackageSpec,
    QuantSpec,
    Recipe,
    ServeSpec,
    VerifySpec,
)
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.errors import Problem

GPTQ = QuantSpec(method="gptq", bits=4, group_size=32, calibration=CalibrationSpec())
# SmolLM2's widths, two blocks of them.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}


def facts(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> ModelFacts:
    tensors = tuple(
        TensorFact(name=name, dtype="bfloat16", shape=shape, file="model.safetensors")
        for name, shape in sorted(shapes.items())
    )
    return ModelFacts(
        kind="folder",
        source="model",
        location="model",
        revision="",
        geometry=geometry_from_config(config),
        config=config,
        files=(),
        tensors=tensors,
        dtype="bfloat16",
    )


def smollm(**changes: Any) -> ModelFacts:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (49152, 576),
        "model.norm.weight": (576,),
    }
    for index in range(2):
        for name, shape in SHAPES.items():
            shapes[f"model.layers.{index}.{name}.weight"] = shape
        shapes[f"model.layers.{index}.input_layernorm.weight"] = (576,)
        shapes[f"model.layers.{index}.post_attention_layernorm.weight"] = (576,)
    return facts({**CONFIG, **changes}, shapes)


def recipe_of(spec: QuantSpec, backend: str = "onnxruntime") -> Recipe:
    return Recipe(
        name="x",
        file="x.yaml",
        model=ModelSpec(source="model"),
        quantize=spec,
        bounds=Bounds(max_input_len=8, max_output_len=8),
        compile=CompileSpec(backend=backend),
        serve=ServeSpec(),
        verify=VerifySpec(),
        package=PackageSpec(),
        publish=None,
        document={},
    )


def problems(spec: QuantSpec, model: ModelFacts) -> list[Problem]:
    return list(PROVIDER.check(recipe_of(spec), model))


def test_the_provider_is_a_quantizer() -> None:
    """The provider implements the interface."""
    assert isinstance(PROVIDER, Quantizer)


@pytest.mark.parametrize("spec", [GPTQ, QuantSpec(method="int8")])
def test_what_works_has_no_problem(spec: QuantSpec) -> None:
    """A sound recipe passes."""
    assert problems(spec, smollm()) == []


@pytest.mark.parametrize("backend", ["onnxruntime", "aotinductor", "vllm", "neuronx"])
def test_a_quantized_head_needs_a_backend_that_was_tried(backend: str) -> None:
    """The recipe alone says so, before the model is asked for."""
    wanted = recipe_of(replace(GPTQ, lm_head=True), backend)
    found = check_providers(wanted, registry.quantizer, registry.backend)
    if backend in {"onnxruntime", "aotinductor"}:
        assert found == []
        assert problems(wanted.quantize, smollm()) == []
        return
    (problem,) = found

    assert (problem.code, problem.path) == ("quantize.head", "quantize.lm_head")
    assert f"`compile.backend: {backend}`" in problem.message
    assert problem.hint == "use `lm_head: false`, or another backend"
    assert problem.unsupported


def test_a_group_must_divide_every_width() -> None:
    """576 is not divisible by 128: the message has the numbers, the hint the sizes."""
    (problem,) = problems(replace(GPTQ, group_size=128), smollm())

    assert problem.code == "quantize.group-size"
    assert problem.path == "quantize.group_size"
    assert "576 % 128 = 64" in problem.message
    assert problem.hint == "use `32`, `64` or `-1`"


@pytest.mark.parametrize(
    ("change", "code", "path"),
    [
        ({"method": "magic"}, "quantize.method", "quantize.method"),
        ({"bits": 5}, "quantize.bits", "quantize.bits"),
        ({"damp_percent": 0.0}, "quantize.damp-percent", "quantize.damp_percent"),
        ({"damp_percent": 1.5}, "quantize.damp-percent", "quantize.damp_percent"),
        ({"group_size": 0}, "quantize.group-size", "quantize.group_size"),
        ({"group_size": -2}, "quantize.group-size", "quantize.group_size"),
        ({"ignore": ("*",)}, "quantize.nothing", "quantize.ignore"),
        ({"ignore": ("lm_head", "down_proj")}, "quantize.ignore", "quantize.ignore"),
        (
            {"calibration": CalibrationSpec(max_seq_len=9000)},
            "quantize.calibration-length",
            "quantize.calibration.max_seq_len",
        ),
    ],
)
def test_what_cannot_work_is_found(
    change: dict[str, Any], code: str, path: str
) -> None:
    """Each fault has its code, its place and a way out."""
    (problem,) = problems(replace(GPTQ, **change), smollm())

    assert (problem.code, problem.path) == (code, path)
    assert problem.hint


def test_a_bare_module_name_gets_its_pattern() -> None:
    """`down_proj` is meant as `*.down_proj`."""
    (problem,) = problems(replace(GPTQ, ignore=("down_proj",)), smollm())

    assert "`*.down_proj`" in problem.hint


def test_unknown_architectures_are_refused_by_gptq_only() -> None:
    """GPTQ needs a map and lists those it has; int8 needs none."""
    model = smollm(architectures=["NewForCausalLM"])
    (problem,) = problems(GPTQ, model)

    assert problem.code == "quantize.architecture"
    assert "`LlamaForCausalLM`" in problem.message
    assert problems(QuantSpec(method="int8"), model) == []


def test_transposed_models_without_a_map_are_refused() -> None:
    """Rounding the rows of [in, out] would be wrong, not just worse."""
    model = smollm(architectures=["OpenAIGPTLMHeadModel"], model_type="openai-gpt")
    (problem,) = problems(QuantSpec(method="int8"), model)

    assert problem.code == "quantize.transposed"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "awq", "bits": 8}, "quantize.bits"),
        ({"kv_cache_dtype": "fp8", "format": "gptq"}, "quantize.kv_cache_dtype"),
        ({"method": "fp8", "format": "gptq"}, "quantize.format"),
    ],
)
def test_a_format_without_room_is_refused(change: dict[str, Any], field: str) -> None:
    """What a format cannot hold is told by the key that is in the way."""
    (problem,) = problems(replace(GPTQ, **change), smollm())

    assert (problem.code, problem.path) == ("quantize.format", field)
    assert problem.hint


def test_odd_widths_are_found() -> None:
    """Codes fill whole words along both axes, or the layer must be ignored."""
    model = facts(CONFIG, {"model.layers.0.mlp.up_proj.weight": (60, 64)})
    (problem,) = problems(GPTQ, model)

    assert problem.code == "quantize.width"
    assert "60 output channels" in problem.message


def test_int8_leaves_routers_norms_and_ends_alone() -> None:
    """Without a map, matrices of numbered blocks are taken, except routers."""
    shapes = {
        name: ("bfloat16", shape)
        for name, shape in {
            "model.embed_tokens.weight": (64, 32),
            "lm_head.weight": (64, 32),
            "model.layers.10.mlp.gate.weight": (8, 32),
            "model.layers.10.mlp.experts.1.w1.weight": (64, 32),
            "model.layers.9.attn.qkv.weight": (96, 32),
            "model.layers.9.norm.weight": (32,),
        }.items()
    }
    names = [x.name for x in select(shapes, architecture=None, ignore=())]

    assert names == ["model.layers.9.attn.qkv", "model.layers.10.mlp.experts.1.w1"]


def test_lowered_parameters_are_complete_and_placeless(tmp_path: Path) -> None:
    """Two places of one text make the same parameters; the place is a setting."""
    lowered = []
    for name in ("a", "b"):
        path = tmp_path / name / "text.txt"
        path.parent.mkdir()
        path.write_text("the same words")
        calibration = pinned(CalibrationSpec(dataset=str(path)), tmp_path)
        spec = replace(GPTQ, calibration=calibration)
        lowered.append(json.dumps(PROVIDER.lower(spec, smollm()), sort_keys=True))

        assert PROVIDER.job_settings(spec) == {"calibration_names": ["text.txt"]}

    assert lowered[0] == lowered[1]
    assert str(tmp_path) not in lowered[0]
    assert PROVIDER.job_settings(GPTQ) == {}
    assert PROVIDER.job_settings(QuantSpec(method="int8")) == {}


def test_every_knob_of_gptq_is_a_parameter() -> None:
    """What may change a byte changes the parameters."""
    base = PROVIDER.lower(GPTQ, smollm())
    for change in (
        {"bits": 8},
        {"group_size": 64},
        {"sym": False},
        {"desc_act": False},
        {"damp_percent": 0.05},
        {"ignore": ("lm_head", "*.down_proj")},
        {"calibration": CalibrationSpec(seed=1)},
        {"calibration": CalibrationSpec(num_samples=8)},
        {"calibration": CalibrationSpec(max_seq_len=128)},
        {"calibration": CalibrationSpec(chat_template=True)},
    ):
        spec = replace(GPTQ, **change)

        assert PROVIDER.lower(spec, smollm()) != base


def test_int8_ignores_what_it_does_not_use() -> None:
    """int8 is eight bits and symmetric whatever `bits` and `sym` say."""
    spec = QuantSpec(method="int8", bits=4, sym=False, group_size=32)
    scheme = PROVIDER.scheme(spec, smollm())

    assert (scheme.weight_bits, scheme.group_size, scheme.sym) == (8, 32, True)
    assert scheme.packing == "gptq"


def test_estimate_of_memory_grows_with_the_text() -> None:
    """Activations of all samples are kept, so more text needs more memory."""
    small, large = (
        PROVIDER.estimate(
            replace(GPTQ, calibration=CalibrationSpec(num_samples=count)), smollm()
        )
        for count in (64, 128)
    )

    assert large.ram_bytes - small.ram_bytes == 64 * 512 * (576 + 1536) * 2
    assert large.disk_bytes == small.disk_bytes


def test_facts_of_a_file_are_facts_of_the_reader(tmp_path: Path) -> None:
    """Header facts are enough to plan: the linears found are those on disk."""
    folder = make_tiny_model(tmp_path, num_layers=3)
    entries = read_header(folder / "model.safetensors").tensors
    shapes = {name: (e.dtype, e.shape) for name, e in entries.items()}

    assert len(select(shapes, architecture=None, ignore=())) == 3 * len(SHAPES)
