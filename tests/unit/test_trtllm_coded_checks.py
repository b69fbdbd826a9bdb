"""What the plan says of codes that no rank has a place for, with the way out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends.trtllm.backend import PROVIDER
from lmi_build.backends.trtllm.checkpoint_plan import plan_checkpoint
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.coded_names import planned_modules
from lmi_build.backends.trtllm.models import trtllm_models
from lmi_build.backends.trtllm.source_model import source_model
from lmi_build.values.model import TensorFact, geometry_from_config
from lmi_build.values.quant import MODELOPT
from lmi_build.values.recipe import CompileSpec, QuantSpec
from packed import HOST, sample_facts, sample_recipe
from trtllm_recipes import SCHEMES

if TYPE_CHECKING:
    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelFacts

# The sizes of Qwen2-0.5B: seven groups of 128 in a row of 896.
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
}
LLAMA: dict[str, Any] = {
    **QWEN,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


def _facts(config: dict[str, Any]) -> ModelFacts:
    """A float model with every tensor that its checkpoint is made of."""
    geometry = geometry_from_config(config)
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": (1, 1)}
    bias = {
        f"model.layers.{layer}.self_attn.{part}_proj.bias": (1,)
        for layer in range(geometry.num_layers)
        for part in "qkv"
        if config["model_type"] == "qwen2"
    }
    model = source_model(
        geometry, config, {**head, **bias}, version="0.12.0", dtype="float16"
    )
    shapes = {
        block.source: block.full if block.full[1] > 1 else block.full[:1]
        for tensor in plan_checkpoint(model, Mapping2D())[0].tensors
        for block in tensor.blocks
    }
    return sample_facts(
        geometry=geometry,
        config=config,
        dtype="float16",
        tensors=tuple(
            TensorFact(name=name, dtype="float16", shape=shape, file="model")
            for name, shape in shapes.items()
        ),
    )


def _problems(
    config: dict[str, Any],
    method: str,
    *,
    release: str = "djl-tensorrtllm-0.33.0",
    tp: int = 1,
    pp: int = 1,
    ignore: tuple[str, ...] = (),
    **scheme: Any,
) -> list[Problem]:
    recipe = sample_recipe(
        quantize=QuantSpec(method="rtn", ignore=("lm_head", *ignore)),
        compile=CompileSpec(
            backend="tensorrt-llm",
            target="ml.p4d.24xlarge",
            release=release,
            artifact="checkpoint",
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
        ),
    )
    made = replace(SCHEMES[method], **scheme)
    return list(PROVIDER.check(recipe, _facts(config), made))


def test_padded_widths_are_found_by_the_plan() -> None:
    """0.21 pads 896 to a multiple of 128 x 2; groups of 64 fit, and so does one GPU."""
    found = _problems(QWEN, "gptq", tp=2)

    assert {problem.code for problem in found} == {"trtllm.layout"}
    first = found[0]
    assert first.path == "compile.tensor_parallel_size"
    assert first.message == (
        "`model.layers.0.self_attn.q_proj` cannot be W4A16_AWQ with"
        " `tensor_parallel_size: 2`: TensorRT-LLM 0.21.0rc1 pads 896 inputs to a"
        " multiple of 128 x 2 ranks"
    )
    assert first.hint == (
        "set `tensor_parallel_size: 1`, `group_size: 64`, `method: int8` or"
        " `method: smoothquant`"
    )
    assert _problems(QWEN, "gptq", tp=1) == []
    assert _problems(QWEN, "gptq", tp=2, group_size=64) == []
    assert _problems(QWEN, "int8", tp=2) == []
    assert _problems(QWEN, "w8a8-dynamic", tp=2) == []
    older = _problems(QWEN, "gptq", tp=2, release="djl-tensorrtllm-0.30.0")
    assert len(older) == 1
    assert "2 ranks get 448 inputs each" in older[0].message


def test_a_hint_names_only_what_fits() -> None:
    """96 channels of a head: no kernel takes the rows of int8 or of groups."""
    narrow = {**LLAMA, "hidden_size": 96, "intermediate_size": 192}
    narrow |= {"num_attention_heads": 2, "num_key_value_heads": 1}

    found = _problems(narrow, "int8")

    assert {problem.path for problem in found} == {"quantize.method"}
    assert {problem.hint for problem in found} == {"set `method: smoothquant`"}
    assert any("multiples of 64 inputs, not for 96" in item.message for item in found)


@pytest.mark.parametrize(
    "release", ["djl-tensorrtllm-0.28.0", "djl-tensorrtllm-0.33.0"]
)
def test_parts_of_a_fused_linear_stay_together(release: str) -> None:
    """Queries, keys and values are one linear; newer releases can leave it whole."""
    found = _problems(LLAMA, "int8", release=release, ignore=("*.0.self_attn.q_proj",))

    assert [problem.code for problem in found] == ["trtllm.float-linears"]
    assert found[0].path == "quantize.ignore"
    block = "model.layers.0.self_attn"
    assert (
        f"float `{block}.q_proj` and quantized `{block}.k_proj` and `{block}.v_proj`"
        in found[0].message
    )
    assert found[0].message.endswith("`attention.qkv` (so in 1 of 4 blocks)")
    newer = release.endswith("0.33.0")
    assert found[0].hint == (
        f"ignore `{block}.q_proj`, `{block}.k_proj` and `{block}.v_proj`, or none of"
        " them"
        if newer
        else "write `ignore: [lm_head]`: quantize every linear of the blocks"
    )
    whole = tuple(f"*.0.self_attn.{part}_proj" for part in "qkv")
    again = _problems(LLAMA, "int8", release=release, ignore=whole)
    assert [problem.code for problem in again] == (
        [] if newer else ["trtllm.float-linears"]
    )


def test_a_pattern_of_all_blocks_is_answered_with_patterns() -> None:
    found = _problems(LLAMA, "int8", ignore=("*.k_proj", "*.v_proj"))

    assert [problem.code for problem in found] == ["trtllm.float-linears"]
    assert "(so in 4 of 4 blocks)" in found[0].message
    patterns = ("*.self_attn.q_proj", "*.self_attn.k_proj", "*.self_attn.v_proj")
    assert all(f"`{pattern}`" in found[0].hint for pattern in patterns)
    assert _problems(LLAMA, "int8", ignore=patterns) == []


def test_smoothquant_leaves_nothing_in_float() -> None:
    found = _problems(LLAMA, "w8a8-dynamic", ignore=("*.gate_proj",))

    assert [problem.code for problem in found] == ["trtllm.float-linears"]
    assert "`model.layers.0.mlp.gate_proj` is float" in found[0].message


def test_stages_share_one_list_of_what_is_float() -> None:
    """Blocks 0 and 2 are the first of their stages, so both have one name."""
    found = _problems(LLAMA, "int8", pp=2, ignore=("model.layers.0.*",))

    assert [problem.code for problem in found] == ["trtllm.float-linears"]
    assert found[0].path == "compile.pipeline_parallel_size"
    assert "`model.layers.0." in found[0].message
    assert "`model.layers.2." in found[0].message
    alike = ("model.layers.0.*", "model.layers.2.*")
    assert _problems(LLAMA, "int8", pp=2, ignore=alike) == []
    assert _problems(LLAMA, "int8", pp=1, ignore=("model.layers.0.*",)) == []


@pytest.mark.parametrize("name", [n for n, row in trtllm_models().items() if row.ours])
def test_what_is_quantized_is_what_a_checkpoint_fuses(name: str) -> None:
    """The quantizer's linears of a block are the parts of the checkpoint's."""
    config = {
        **LLAMA,
        "architectures": [name],
        "num_key_value_heads": 32,
        "num_local_experts": 2,
    }
    geometry = geometry_from_config(config)
    model = source_model(geometry, config, {}, version="0.12.0", dtype="float16")
    parts = {
        block.source.removesuffix(".weight")
        for tensor in plan_checkpoint(model, Mapping2D())[0].tensors
        for block in tensor.blocks
        if min(block.full) > 1
    }
    outside = {
        model.architecture.embedding,
        model.architecture.positions,
        model.architecture.head,
    }
    routers = {part for part in parts if part.endswith(model.architecture.router)}

    found = planned_modules((f"{part}.weight" for part in parts), geometry, ())

    assert found == parts - outside - routers


def test_a_plan_needs_no_torch() -> None:
    """Checks and stages are made of sizes; tensors are the worker's."""
    code = (
        "import json, sys, lmi_build.backends.trtllm.backend\n"
        "print(json.dumps([x for x in ('torch', 'numpy') if x in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert json.loads(done.stdout) == []


FALCON: dict[str, Any] = {
    **LLAMA,
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "num_attention_heads": 71,
    "num_key_value_heads": 1,
    "hidden_size": 4544,
    "intermediate_size": 18176,
}


@pytest.mark.parametrize(
    ("release", "ranks", "code"),
    [
        ("tensorrt-llm-0.16.0", (2, 1), "trtllm.tensor-parallel"),
        ("tensorrt-llm-0.16.0", (1, 3), "trtllm.pipeline-parallel"),
        ("tensorrt-llm-0.16.0", (1, 2), ""),
        ("tensorrt-llm-0.21.0", (1, 3), ""),
        ("tensorrt-llm-0.21.0", (1, 5), "trtllm.pipeline-parallel"),
    ],
)
def test_splits_for_the_converter_are_judged(
    release: str, ranks: tuple[int, int], code: str
) -> None:
    """Falcon-7B has 71 heads; NVIDIA's converter writes its checkpoint, here or not."""
    recipe = sample_recipe(
        compile=CompileSpec(
            backend="tensorrt-llm",
            target="ml.p4d.24xlarge",
            release=release,
            artifact="engine",
            tensor_parallel_size=ranks[0],
            pipeline_parallel_size=ranks[1],
        )
    )
    facts = sample_facts(
        geometry=geometry_from_config(FALCON), config=FALCON, dtype="float16"
    )

    found = [item.code for item in PROVIDER.check(recipe, facts, SCHEMES["none"])]

    assert [one for one in found if one.startswith("trtllm.")] == ([code] * bool(code))


def test_what_model_optimizer_packed_is_for_the_other_backend() -> None:
    """It is not taken apart, so no engine is made of it."""
    facts = _facts(LLAMA)
    entry: Any = {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}
    recipe = sample_recipe(
        quantize=QuantSpec(method="none"),
        compile=CompileSpec(
            backend="tensorrt-llm",
            target="ml.p4d.24xlarge",
            release="djl-tensorrtllm-0.33.0",
            artifact="engine",
        ),
    )

    (problem,) = PROVIDER.check(
        recipe,
        replace(facts, config={**LLAMA, "quantization_config": entry}),
        replace(SCHEMES["gptq"], packing=MODELOPT),
    )

    assert (problem.code, problem.path) == ("compile.unsupported", "model.source")
    assert "`artifact: hf-quantized`" in problem.hint


@pytest.mark.parametrize("packing", ["gptq", "int-quantized"])
@pytest.mark.parametrize("came_so", [True, False])
def test_the_converter_rounds_float_weights_to_int8(
    packing: str, *, came_so: bool
) -> None:
    """Eight bits are no `W4A16_GPTQ`, however they are packed, and codes no floats."""
    entry = {"quantization_config": {"quant_method": "gptq", "bits": 8}}
    recipe = sample_recipe(
        quantize=QuantSpec(method="none" if came_so else "int8"),
        compile=CompileSpec(
            backend="tensorrt-llm",
            target="ml.p4d.24xlarge",
            release="djl-tensorrtllm-0.30.0",
        ),
    )
    facts = sample_facts(
        geometry=geometry_from_config(FALCON),
        config={**FALCON, **(entry if came_so else {})},
        dtype="float16",
    )
    made = replace(SCHEMES["int8"], packing=packing)

    refused = list(PROVIDER.check(recipe, facts, made))

    assert [item.code for item in refused] == ["compile.unsupported"] * came_so
    if came_so:
        assert "makes `W8A16` of float weights" in refused[0].message
        return
    engine = PROVIDER.stages(recipe, facts, made, HOST)[-1]
    assert engine.params["quant_algo"] == "W8A16"
    assert engine.inputs == {"source": "fetch"}


@pytest.mark.parametrize(
    ("release", "image"),
    [
        ("tensorrt-llm-0.16.0", ""),
        ("tensorrt-llm-0.21.0", "nvcr.io/nvidia/tensorrt-llm/release:0.21.0"),
    ],
)
def test_a_release_without_an_image_cannot_start_a_container(
    release: str, image: str
) -> None:
    """NVIDIA's registry begins with 0.20; before, the user names an image."""
    recipe = sample_recipe(
        compile=CompileSpec(
            backend="tensorrt-llm", target="ml.p4d.24xlarge", release=release
        )
    )
    facts = _facts(LLAMA)
    host = replace(HOST, runner="container")

    engine = PROVIDER.stages(recipe, facts, SCHEMES["none"], host)[-1]
    named = replace(host, places={"image": "mine@sha256:1"})
    other = PROVIDER.stages(recipe, facts, SCHEMES["none"], named)[-1]

    assert engine.settings["image"] == image
    assert engine.blocker is not None
    assert (engine.blocker.code == "trtllm.no-image") is (not image)
    assert other.settings["image"] == "mine@sha256:1"
    assert other.blocker is not None
    assert other.blocker.code == "trtllm.no-gpu"
