"""What the table of architectures promises, and what it lets through."""

from __future__ import annotations

from typing import Any

import pytest

from lmi_build.backends.trtllm.checkpoint_checks import (
    architecture_problem,
    checkpoint_problems,
)
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.coded_checks import Coding
from lmi_build.backends.trtllm.models import (
    TrtllmModel,
    _inherit,
    _model,
    trtllm_models,
    value_at,
    version_key,
)
from lmi_build.catalog.architectures import architectures
from lmi_build.values.model import geometry_from_config

OURS = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Qwen2ForCausalLM",
    "GemmaForCausalLM",
    "GPT2LMHeadModel",
    "OPTForCausalLM",
    "GPTNeoXForCausalLM",
)
THEIRS = (
    "PhiForCausalLM",
    "FalconForCausalLM",
    "GPTJForCausalLM",
    "BloomForCausalLM",
    "InternLMForCausalLM",
    "InternLM2ForCausalLM",
    "BaichuanForCausalLM",
    "ChatGLMModel",
    "T5ForConditionalGeneration",
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.mark.parametrize("name", OURS)
def test_what_we_write_has_names_for_all_parts(name: str) -> None:
    """Every part that the architecture has is called something in the checkpoint."""
    row, architecture = trtllm_models()[name], architectures()[name]

    wanted = {"embedding", "blocks", "final_norm", "head", "qkv", "output"}
    wanted |= {"attention_norm", "mlp_norm", "up", "down"}
    wanted |= {"gate"} if architecture.gate else set()
    wanted |= {"positions"} if architecture.positions else set()
    wanted |= {"router", "experts_in", "experts_out"} if architecture.experts else set()
    assert {part for part, value in row.names.items() if value} == wanted
    assert version_key(row.ours) >= version_key(row.since)


@pytest.mark.parametrize("name", THEIRS)
def test_the_rest_goes_to_the_converter(name: str) -> None:
    """A refusal names the script to run instead."""
    row = trtllm_models()[name]
    problem = architecture_problem(name, "0.21.0")

    assert problem is not None
    assert problem.code == "trtllm.no-writer"
    assert problem.unsupported
    assert str(value_at(row.converter, "0.21.0")) in problem.hint


@pytest.mark.parametrize("row", trtllm_models().values(), ids=lambda row: row.name)
def test_a_row_knows_its_class_and_script_from_the_start(row: TrtllmModel) -> None:
    assert value_at(row.architecture, row.since)
    assert str(value_at(row.converter, row.since)).startswith("examples/")


def test_a_release_without_the_model_names_those_it_has() -> None:
    problem = architecture_problem("Qwen2ForCausalLM", "0.9.0")

    assert problem is not None
    assert "came with 0.10" in problem.message
    assert "`LlamaForCausalLM`" in problem.hint
    assert "`Qwen2ForCausalLM`" not in problem.hint


@pytest.mark.parametrize(
    ("tp", "pp", "fits"),
    [
        (1, 1, True),
        (8, 1, True),
        (16, 2, True),
        (32, 4, True),
        (3, 1, False),
        (1, 5, False),
    ],
)
def test_splits_are_judged_by_sizes_alone(tp: int, pp: int, *, fits: bool) -> None:
    """Before a header is read; more ranks than key heads are fine if they divide."""
    problems = checkpoint_problems(
        geometry_from_config(CONFIG),
        CONFIG,
        {},
        version="0.12.0",
        dtype="bfloat16",
        mapping=Mapping2D(tp=tp, pp=pp),
    )

    assert (list(problems) == []) == fits


@pytest.mark.parametrize(("group", "tp", "fits"), [(128, 4, True), (128, 32, False)])
def test_groups_are_judged_by_sizes_alone(group: int, tp: int, *, fits: bool) -> None:
    """14336 inputs of `down_proj` on 32 ranks are 448, three and a half groups."""
    problems = list(
        checkpoint_problems(
            geometry_from_config(CONFIG),
            CONFIG,
            {},
            version="0.12.0",
            dtype="float16",
            mapping=Mapping2D(tp=tp),
            coding=Coding(algorithm="W4A16_AWQ", group_size=group, version="0.12.0"),
        )
    )

    assert (problems == []) == fits
    if not fits:
        assert "32 ranks get 448 inputs each" in problems[0].message


def test_a_dtype_that_no_engine_has_is_refused() -> None:
    problems = checkpoint_problems(
        geometry_from_config(CONFIG),
        CONFIG,
        {},
        version="0.12.0",
        dtype="float64",
        mapping=Mapping2D(),
    )

    assert [problem.code for problem in problems] == ["trtllm.dtype"]


def test_a_table_with_a_wrong_word_is_a_fault_of_the_package() -> None:
    good = {
        "family": "llama",
        "since": "0.8",
        "architecture": {"0.8": "X"},
        "converter": {},
        "quantization": ["awq"],
    }
    assert _model("X", good).quantization == ("awq",)
    for wrong in ({"quantization": ["gguf"]}, {"names": {"tail": "x"}}):
        with pytest.raises(ValueError, match="unknown"):
            _model("X", {**good, **wrong})
    with pytest.raises(ValueError, match="no version"):
        _model("X", {**good, "since": "first"})
    child = _inherit("Y", {"X": good, "Y": {"base": "X", "since": "0.9"}})
    assert (child["since"], child["family"]) == ("0.9", "llama")
