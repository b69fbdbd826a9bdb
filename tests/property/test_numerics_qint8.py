"""Rounding of NxD Inference against PyTorch's own, which it calls."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch
from safetensors.torch import save_file

from lmi_build.checkpoint.formats.rounded_nxdi import NxdiInt8Reader
from lmi_build.numerics.qint8 import quantize_qint8, rounded_qint8

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps


def torch_codes(w_OI: Tensor) -> Tensor:
    """What `torch.quantize_per_channel` makes of the observer's scales."""
    scale_O = (w_OI.abs().amax(1) / 127.0).clamp_min(EPSILON).double()
    zero_O = torch.zeros(len(w_OI), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.quantize_per_channel(w_OI, scale_O, zero_O, 0, torch.qint8)
    return made.int_repr()


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 33), st.floats(-9, 3))
def test_codes_are_those_of_torch(
    seed: int, rows: int, columns: int, power: float
) -> None:
    """Every code, also of rows so small that the scale has its least value."""
    generator = torch.Generator().manual_seed(seed)
    w_OI = torch.randn(rows, columns, generator=generator) * 10**power
    w_OI[0, : columns // 2] = 0
    if seed % 2:
        w_OI = w_OI.bfloat16().float()
    code_OI, scale_O = quantize_qint8(w_OI)

    assert torch.equal(code_OI, torch_codes(w_OI))
    assert torch.equal(rounded_qint8(w_OI), code_OI.float() * scale_O[:, None])


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 33))
def test_no_weight_moves_by_more_than_half_a_step(
    seed: int, rows: int, columns: int
) -> None:
    """Nor is the largest of a row clamped."""
    generator = torch.Generator().manual_seed(seed)
    w_OI = torch.randn(rows, columns, generator=generator)
    code_OI, scale_O = quantize_qint8(w_OI)
    error_OI = (w_OI - rounded_qint8(w_OI)).abs()

    assert bool((error_OI <= scale_O[:, None] * 0.5001).all())
    assert code_OI.abs().amax(1).tolist() == [127] * rows


def test_a_row_of_zeros() -> None:
    """It stays one."""
    assert rounded_qint8(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("head", [True, False])
def test_what_of_a_folder_is_rounded(head: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Linears and the head of its own; nothing else, and not a tied head."""
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    block = "model.layers.0."
    names = [f"self_attn.{part}_proj" for part in "qkvo"]
    names += [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    weights = {f"{block}{name}.weight": torch.randn(8, 8) for name in names}
    linears = set(weights)
    weights |= {f"{block}{n}_layernorm.weight": torch.ones(8) for n in ("input",)}
    weights |= {f"{block}post_attention_layernorm.weight": torch.ones(8)}
    weights |= {"model.norm.weight": torch.ones(8)}
    weights |= {"model.embed_tokens.weight": torch.randn(16, 8)}
    if head:
        weights["lm_head.weight"] = torch.randn(16, 8).bfloat16()
    save_file(weights, tmp_path / "model.safetensors")
    with NxdiInt8Reader(tmp_path) as reader:
        assert set(reader.rounded) == linears | ({"lm_head.weight"} if head else set())
        for name, weight in weights.items():
            wanted = rounded_qint8(weight) if name in reader.rounded else weight
            assert torch.equal(reader.read(name), wanted)
            assert reader.entry(name).shape == tuple(weight.shape)
