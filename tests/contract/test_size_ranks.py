"""Predicted bytes of a rank are those of the TensorRT-LLM checkpoint that we write."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import tiny_architectures
from bench.folder_facts import folder_facts
from lmi_build import registry
from lmi_build.catalog.runtimes import runtimes
from lmi_build.checkpoint.header import read_header
from lmi_build.plan.sizes import subject_of
from lmi_build.sizing.memory import total, weight_lines
from lmi_build.values.recipe import QuantSpec
from make_tiny_model import _write_tokenizer
from stage_jobs import quantize
from trtllm_models import MODELS, convert, make

if TYPE_CHECKING:
    from pathlib import Path

# Gemma's checkpoint is in float32, which the model is not. Two rows of OPT's positions
# are never read, and left out: 2 x 96 x 2 bytes.
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "vocab_size": 322,
}
FOUR = QuantSpec(method="rtn", bits=4, group_size=64)
CODED: dict[str, tuple[QuantSpec, dict[str, Any]]] = {
    "groups": (
        FOUR,
        {"quant_algo": "W4A16_AWQ", "group_size": 64, "has_zero_point": False},
    ),
    "zeros": (
        replace(FOUR, sym=False),
        {"quant_algo": "W4A16_AWQ", "group_size": 64, "has_zero_point": True},
    ),
    "rows": (QuantSpec(method="int8", bits=8), {"quant_algo": "W8A16"}),
}
# The last release that takes linears of any width.
WIDTHS_ANY = "0.12.0"
NAMES = sorted(set(MODELS) - {"gemma"})
LEFT_OUT = {"opt": 384}


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_each_rank_has_the_predicted_bytes(name: str, tp: int, tmp_path: Path) -> None:
    """
    Split columns and rows, copied key heads, padded vocabularies, to the byte.

    There a tied head is a tensor of its own and routers are in float32: the upper end.
    """
    make(name, tmp_path / "model")
    out = convert(tmp_path / "model", tmp_path / "out", tp=tp)
    subject = subject_of(
        folder_facts(tmp_path / "model"), QuantSpec(), registry.quantizer
    )
    predicted = total(weight_lines(subject, runtimes()["tensorrt-llm"], tp=tp))
    assert rank_sizes(out) == {predicted.high - LEFT_OUT.get(name, 0)}
    assert predicted.low <= predicted.high
    if not subject.table.tied and name != "mixtral":
        assert predicted.low == predicted.high


@pytest.mark.parametrize("name", CODED)
def test_each_rank_of_codes_has_the_predicted_bytes(name: str, tmp_path: Path) -> None:
    """Codes, scales and zero points of one, two and four ranks: the lower end."""
    import torch

    spec, algorithm = CODED[name]
    model = tmp_path / "model"
    model.mkdir()
    tiny_architectures.build("llama", **SIZES).to(torch.float16).save_pretrained(model)
    _write_tokenizer(model, 320)
    source = quantize(tmp_path / "quantized", model, spec)
    subject = subject_of(folder_facts(model), spec, registry.quantizer)
    for tp in (1, 2, 4):
        out = convert(
            source,
            tmp_path / str(tp),
            dtype="float16",
            version=WIDTHS_ANY,
            tp=tp,
            algorithm=algorithm,
        )
        predicted = total(weight_lines(subject, runtimes()["tensorrt-llm"], tp=tp))

        assert rank_sizes(out) == {predicted.low}
        assert predicted.low <= predicted.high


def rank_sizes(out: Path) -> set[int]:
    """Bytes of the tensors of each rank's file."""
    return {
        sum(entry.end - entry.begin for entry in read_header(path).tensors.values())
        for path in out.glob("rank*.safetensors")
    }
