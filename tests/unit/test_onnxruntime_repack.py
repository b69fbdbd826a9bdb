"""A checkpoint's integers become MatMulNBits' blocks without a single change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from autogptq import quantize_linear  # noqa: E402
from formats import scheme  # noqa: E402
from lmi_build.backends.onnxruntime_repack import (  # noqa: E402
    BlockedWeight,
    RepackRefused,
    block_size_for,
    repack,
)
from lmi_build.checkpoint.formats.codec import decode  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from lmi_build.checkpoint.formats.codec import Codes


def make(
    *,
    num_outputs: int = 8,
    num_inputs: int = 128,
    bits: int = 4,
    group_size: int = 64,
    sym: bool = True,
    shuffled: bool = False,
) -> tuple[Codes, Tensor]:
    """A layer out of its file, and what it dequantizes to by the plain writer."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(num_outputs, num_inputs, generator=generator)
    order = torch.randperm(num_inputs, generator=generator) if shuffled else None
    parts, dense = quantize_linear(
        weight, bits=bits, group_size=group_size, sym=sym, order=order
    )
    form = scheme("gptq", weight_bits=bits, group_size=group_size, sym=sym)
    tensors = {f"m.{part}": tensor for part, tensor in parts.items()}
    return decode(tensors, "m", form), dense


def dequantize(blocked: BlockedWeight) -> Tensor:
    """What MatMulNBits computes with, value by value from its definition."""
    num_blocks = blocked.blocks.shape[1]
    dense: Tensor = torch.zeros(blocked.num_outputs, blocked.num_inputs)
    scales = blocked.scales.reshape(blocked.num_outputs, num_blocks)
    for row in range(blocked.num_outputs):
        for place in range(blocked.num_inputs):
            block, inside = divmod(place, blocked.block_size)
            if blocked.bits == 8:
                level = int(blocked.blocks[row, block, inside])
            else:
                level = int(blocked.blocks[row, block, inside // 2])
                level = level >> 4 if inside % 2 else level & 0xF
            zero = _zero(blocked, row, block, num_blocks)
            channel = place if blocked.order is None else int(blocked.order[place])
            dense[row, channel] = (level - zero) * scales[row, block]
    return dense


def _zero(blocked: BlockedWeight, row: int, block: int, num_blocks: int) -> int:
    if blocked.zeros is None:
        return 1 << (blocked.bits - 1)
    row_bytes = -(-num_blocks * blocked.bits // 8)
    zeros = blocked.zeros.reshape(blocked.num_outputs, row_bytes)
    if blocked.bits == 8:
        return int(zeros[row, block])
    byte = int(zeros[row, block // 2])
    return byte >> 4 if block % 2 else byte & 0xF


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_every_value_survives(
    *, bits: int, group_size: int, sym: bool, shuffled: bool
) -> None:
    """A repacked layer dequantizes to exactly what the checkpoint says."""
    codes, dense = make(bits=bits, group_size=group_size, sym=sym, shuffled=shuffled)

    for widest in (16, 128):
        blocked = repack(codes, bits=bits, group_size=group_size, widest=widest)
        assert torch.equal(dense, dequantize(blocked))


def test_rows_that_do_not_fill_their_last_block_survive() -> None:
    """Whole-row scales work for widths that are no multiple of any block."""
    codes, dense = make(num_inputs=40, bits=8, group_size=-1)
    blocked = repack(codes, bits=8, group_size=-1, widest=128)

    assert blocked.block_size == 16
    assert torch.equal(dense, dequantize(blocked))


def test_a_last_group_that_is_shorter_survives() -> None:
    """AutoGPTQ allows a width that is no multiple of the group."""
    codes, dense = make(num_inputs=80, group_size=32)
    blocked = repack(codes, bits=4, group_size=32, widest=32)

    assert blocked.order is None
    assert torch.equal(dense, dequantize(blocked))


def test_plain_zero_points_are_left_out() -> None:
    """Symmetric layers say nothing about zero points, others do."""
    assert repack(make(sym=True)[0], bits=4, group_size=64, widest=32).zeros is None
    assert (
        repack(make(sym=False)[0], bits=4, group_size=64, widest=32).zeros is not None
    )


@pytest.mark.parametrize(
    ("group_size", "num_inputs", "widest", "expected"),
    [
        (64, 576, 128, 64),
        (64, 576, 32, 32),
        (96, 192, 128, 32),
        (128, 512, 128, 128),
        (-1, 576, 128, 64),
        (-1, 1536, 128, 128),
        (-1, 50, 128, 16),
    ],
)
def test_blocks_never_cross_groups(
    group_size: int, num_inputs: int, widest: int, expected: int
) -> None:
    """A block is the largest power of two that divides the group and is allowed."""
    assert expected == block_size_for(group_size, num_inputs, widest)


def test_odd_groups_are_refused() -> None:
    """Groups that are no multiple of 16 channels cannot be said in blocks."""
    with pytest.raises(RepackRefused, match="group_size 24 is not a multiple of 16"):
        block_size_for(24, 96, 128)


def test_other_bits_are_refused() -> None:
    """MatMulNBits is used with 4 and 8 bits."""
    codes, _ = make()
    with pytest.raises(RepackRefused, match="3-bit weights"):
        repack(codes, bits=3, group_size=64, widest=32)


def test_uneven_groups_are_refused() -> None:
    """An order whose groups have different sizes is not silently rearranged."""
    codes, _ = make(shuffled=True)
    assert codes.group_I is not None
    codes.group_I[codes.group_I.argmin()] = 1

    with pytest.raises(RepackRefused, match="does not fill its groups"):
        repack(codes, bits=4, group_size=64, widest=32)
