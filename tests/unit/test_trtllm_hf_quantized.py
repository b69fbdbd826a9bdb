"""Which checkpoints TensorRT-LLM's PyTorch backend reads, by release."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends.trtllm.hf_quantized import (
    FLOAT,
    hf_formats,
    hf_quantized_params,
    hf_quantized_problems,
    quant_algo,
    readable,
)
from lmi_build.catalog.releases import releases
from lmi_build.values.model import ModelFacts, TensorFact, geometry_from_config
from lmi_build.values.quant import MODELOPT, QuantScheme
from tiny_models import CONFIG, SHAPES

if TYPE_CHECKING:
    from lmi_build.errors import Problem

INT4 = QuantScheme(
    weight_bits=4,
    weight_dtype="int",
    group_size=128,
    sym=True,
    activation_bits=16,
    packing="gptq",
)
INT8 = replace(INT4, weight_bits=8, group_size=-1)
FP8_ROWS = QuantScheme(
    weight_bits=8,
    weight_dtype="float",
    group_size=-1,
    sym=True,
    activation_bits=8,
    packing="float-quantized",
    activation_dtype="float",
    activation_scheme="dynamic",
)
FP8 = replace(FP8_ROWS, granularity="tensor", activation_scheme="static")
SMOOTH = replace(
    INT8,
    packing="int-quantized",
    activation_bits=8,
    activation_dtype="int",
    activation_scheme="static",
)
NONE = QuantScheme(
    weight_bits=16,
    weight_dtype="float",
    group_size=-1,
    sym=True,
    activation_bits=16,
    packing="none",
)


def facts(*names: str) -> ModelFacts:
    """A model with the usual tensors and some more."""
    tensors = tuple(
        TensorFact(name=name, dtype="float32", shape=shape, file="m")
        for name, shape in {**SHAPES, **dict.fromkeys(names, (8, 8))}.items()
    )
    return ModelFacts(
        kind="folder",
        source="m",
        location="m",
        revision="",
        geometry=geometry_from_config(CONFIG),
        config=CONFIG,
        files=(),
        tensors=tensors,
        dtype="float32",
    )


def problems(scheme: QuantScheme, **changes: Any) -> list[Problem]:
    """What stands in the way, on a release and a GPU that have everything."""
    place = {"trtllm": "1.2.0", "capability": "9.0", "tensor_parallel_size": 1}
    return list(hf_quantized_problems(scheme, facts(), **{**place, **changes}))


@pytest.mark.parametrize(
    ("scheme", "algo"),
    [
        (NONE, FLOAT),
        (INT4, "W4A16_AWQ"),
        (replace(INT4, packing="awq", group_size=64), "W4A16_AWQ"),
        (replace(INT4, packing="pack-quantized"), "W4A16_AWQ"),
        (replace(INT4, packing=MODELOPT, scale_dtype="float32"), "W4A16_AWQ"),
        (INT8, "W8A16"),
        (replace(INT8, packing="int-quantized"), "W8A16"),
        (FP8, "FP8"),
        (replace(FP8, activation_scheme="dynamic"), "FP8"),
        (FP8_ROWS, "FP8_PER_CHANNEL_PER_TOKEN"),
    ],
    ids=str,
)
def test_what_has_a_form_is_named_and_has_no_problems(
    scheme: QuantScheme, algo: str
) -> None:
    """Whoever found the numbers and however they lie."""
    assert quant_algo(scheme) == algo
    assert problems(scheme) == []
    assert hf_quantized_params(scheme)["quant_algo"] == algo


@pytest.mark.parametrize(
    ("scheme", "path", "hint"),
    [
        (replace(INT4, sym=False), "quantize.sym", "sym: true"),
        (replace(INT4, group_size=32), "quantize.group_size", "128"),
        (replace(INT4, group_size=-1), "quantize.group_size", "128"),
        (replace(INT4, act_order=True), "model.source", "float model"),
        (replace(INT4, weight_bits=3), "quantize.bits", "bits: 4"),
        (replace(INT8, group_size=128), "quantize.group_size", "group_size: -1"),
        (SMOOTH, "quantize.method", "fp8"),
        (replace(FP8_ROWS, activation_scheme="static"), "quantize.activations", "dyn"),
        (replace(FP8, activation_scheme="none"), "quantize.activations", "static"),
    ],
    ids=str,
)
def test_what_has_no_form_is_refused_with_the_way_out(
    scheme: QuantScheme, path: str, hint: str
) -> None:
    """One problem, at the key that is in the way; the worker is never reached."""
    (problem,) = problems(scheme)

    assert (problem.code, problem.path) == ("compile.hf-format", path)
    assert problem.unsupported
    assert hint in problem.hint
    assert quant_algo(scheme) is None
    with pytest.raises(ValueError, match="no quant_algo"):
        hf_quantized_params(scheme)


@pytest.mark.parametrize("scheme", [INT4, INT8, FP8_ROWS], ids=str)
def test_the_last_lmi_release_reads_fp8_with_one_scale_alone(
    scheme: QuantScheme,
) -> None:
    """0.21 had no weight-only layers and no scales of rows."""
    (problem,) = problems(scheme, trtllm="0.21.0rc1")

    assert problem.path == "compile.release"
    assert "1.0" in problem.hint
    assert "granularity: tensor" in problem.hint
    assert problems(FP8, trtllm="0.21.0rc1") == []
    assert set(readable("0.21.0rc1")) == {"FP8"}


def test_an_older_release_on_a_gpu_without_fp8_has_engines() -> None:
    """The way out is one that the GPU can go."""
    (problem,) = problems(INT4, trtllm="0.21.0rc1", capability="8.6")

    assert "artifact: engine" in problem.hint
    assert "fp8" not in problem.hint


@pytest.mark.parametrize(
    ("scheme", "capability", "allowed"),
    [
        (INT4, "8.0", True),
        (INT4, "7.5", False),
        (INT4, "10.0", False),
        (INT8, "8.6", True),
        (FP8, "8.6", False),
        (FP8, "8.9", True),
        (FP8, "10.0", True),
        (FP8_ROWS, "9.0", True),
        (FP8_ROWS, "10.0", False),
        (FP8_ROWS, "", True),
    ],
    ids=str,
)
def test_a_gpu_without_kernels_is_refused(
    scheme: QuantScheme, capability: str, *, allowed: bool
) -> None:
    """Both numbers stand in the message."""
    found = problems(scheme, capability=capability)

    assert (found == []) is allowed
    if not allowed:
        assert found[0].path == "compile.target"
        assert capability in found[0].message


def test_four_bits_over_gpus_wait_for_the_release_that_cuts_their_scales() -> None:
    """1.0 and 1.1 load them on one GPU alone."""
    (problem,) = problems(INT4, trtllm="1.1.0", tensor_parallel_size=4)

    assert problem.path == "compile.tensor_parallel_size"
    assert problems(INT4, trtllm="1.2.0", tensor_parallel_size=4) == []
    assert problems(INT4, trtllm="1.0.0") == []
    assert problems(FP8_ROWS, trtllm="1.0.0", tensor_parallel_size=4) == []


def test_experts_and_int8_caches_are_refused() -> None:
    """Each by its own key."""
    model = facts("model.layers.0.mlp.experts.0.up_proj.weight")
    place: dict[str, Any] = {
        "trtllm": "1.2.0",
        "capability": "9.0",
        "tensor_parallel_size": 1,
    }
    (experts,) = hf_quantized_problems(INT4, model, **place)
    (cache,) = problems(replace(FP8, kv_cache_dtype="int8"))

    assert experts.path == "quantize.method"
    assert cache.path == "quantize.kv_cache_dtype"
    assert list(hf_quantized_problems(NONE, model, **place)) == []


def test_each_lmi_release_with_such_an_artifact_reads_something() -> None:
    """The catalogue of releases and this table know each other."""
    able = [x for x in releases().values() if "hf-quantized" in x.artifacts]
    images = [release for release in able if release.lmi]

    assert images
    assert all(readable(release.trtllm) for release in images)
    newest = max(able, key=lambda release: len(readable(release.trtllm)))
    assert set(readable(newest.trtllm)) == set(hf_formats())
