"""What each release of TensorRT-LLM is told about a checkpoint's numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmi_build.backends.trtllm.gptq_folder import gptq_folder_problems
from lmi_build.backends.trtllm.quant_config import (
    exclusion_problem,
    quant_config,
    reads_cache_scale,
)
from lmi_build.values.quant import QuantScheme

GPTQ = QuantScheme(
    weight_bits=4,
    weight_dtype="int",
    group_size=128,
    sym=True,
    activation_bits=16,
    packing="gptq",
)
PLUGIN = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"


def test_float_weights_have_a_section_that_says_so() -> None:
    assert quant_config("", trtllm="0.16.0") == {
        "quant_algo": None,
        "kv_cache_quant_algo": None,
    }


def test_awq_says_its_groups_and_that_inputs_are_not_scaled() -> None:
    assert quant_config(
        "W4A16_AWQ",
        trtllm="0.21.0rc1",
        group_size=64,
        zero_points=True,
        kv_cache_dtype="fp8",
    ) == {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": "FP8",
        "group_size": 64,
        "has_zero_point": True,
        "pre_quant_scale": False,
    }


def test_only_the_oldest_release_is_told_of_plugins() -> None:
    """A key that `QuantConfig` does not have would stop the build."""
    assert quant_config(PLUGIN, trtllm="0.8.0")["sq_use_plugin"] is True
    assert "sq_use_plugin" not in quant_config(PLUGIN, trtllm="0.9.0")
    assert "sq_use_plugin" not in quant_config("W8A8_SQ_PER_CHANNEL", trtllm="0.8.0")


def test_what_stays_in_float_is_said_with_all_that_always_does() -> None:
    name = "transformer.layers.0.mlp.proj"

    section = quant_config("W8A16", trtllm="0.12.0", float_modules=[name])

    excluded = section["exclude_modules"]
    assert isinstance(excluded, list)
    assert {f"{name}*", "*lm_head*", "*vocab_embedding*"} <= set(map(str, excluded))


@pytest.mark.parametrize(
    ("algorithm", "trtllm", "message"),
    [
        (PLUGIN, "0.16.0", "quantizes every linear of a layer"),
        ("W4A16_AWQ", "0.10.0", "cannot leave single linears in float"),
        ("W4A16_AWQ", "0.11.0", ""),
        ("", "0.8.0", ""),
    ],
)
def test_not_every_release_leaves_a_linear_out(
    algorithm: str, trtllm: str, message: str
) -> None:
    modules = ["transformer.layers.0.mlp.proj"]
    problem = exclusion_problem(algorithm, trtllm=trtllm, float_modules=modules)

    assert message in problem
    assert bool(problem) == bool(message)
    if problem:
        with pytest.raises(ValueError, match=message):
            quant_config(algorithm, trtllm=trtllm, float_modules=modules)


def test_old_releases_take_one_for_the_scale_of_an_fp8_cache() -> None:
    assert [
        reads_cache_scale("fp8", trtllm=version)
        for version in ("0.8.0", "0.14.0", "0.15.0", "1.0.0")
    ] == [False, False, True, True]
    assert reads_cache_scale("int8", trtllm="0.8.0")


def _problems(scheme: QuantScheme, **changed: object) -> list[str]:
    settings = {
        "files": ["model.safetensors"],
        "tensors": ["lm_head.weight"],
        "trtllm": "0.16.0",
        **changed,
    }
    return gptq_folder_problems(scheme, **settings)  # type: ignore[arg-type]


def test_the_folder_that_the_converter_means_is_fine() -> None:
    assert _problems(GPTQ) == []


@pytest.mark.parametrize(
    ("scheme", "changed", "message"),
    [
        (replace(GPTQ, packing="gptq_v2"), {}, "adds one to zero points"),
        (replace(GPTQ, act_order=True), {}, "does not read the group index"),
        (replace(GPTQ, sym=False), {}, "`has_zero_point` to `sym`"),
        (replace(GPTQ, weight_bits=3), {}, "no 3-bit GPTQ weights"),
        (replace(GPTQ, weight_bits=8), {"trtllm": "0.12.0"}, "0.12.0 has no 8-bit"),
        (replace(GPTQ, group_size=32), {}, "groups of 64 and 128 inputs, not of 32"),
        (replace(GPTQ, scale_dtype="bfloat16"), {}, "read as float16"),
        (GPTQ, {"files": ["a", "b"]}, "opens one file, and there are 2"),
        (GPTQ, {"tensors": []}, "asks for a float `lm_head.weight`"),
        (GPTQ, {"pipeline_parallel_size": 2}, "the layers of the first"),
    ],
)
def test_each_thing_that_the_converter_does_not_check_is_told(
    scheme: QuantScheme, changed: dict[str, object], message: str
) -> None:
    problems = _problems(scheme, **changed)

    assert len(problems) == 1
    assert message in problems[0]
