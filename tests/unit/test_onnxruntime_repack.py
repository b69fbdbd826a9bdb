"""AutoGPTQ's integers become MatMulNBits' blocks without a single change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from autogptq import pack_along_rows, quantize_linear  # noqa: E402
from lmi_build.backends.onnxruntime_repack import (  # noqa: E402
    BlockedWeight,
    PackedWeight,
    RepackRefused,
    block_size_for,
    repack,
)

if TYPE_CHECKING:
    from torch import Tensor


def make(
    *,
    num_outputs: int = 8,
    num_inputs: int = 128,
    bits: int = 4,
    group_size: int = 64,
    sym: bool = True,
    shuffled: bool = False,
) -> tuple[PackedWeight, Tensor]:
    """A packed layer, and what it dequantizes to by the plain writer."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(num_outputs, num_inputs, generator=generator)
    order = torch.randperm(num_inputs, generator=generator) if shuffled else None
    parts, dense = quantize_linear(
        weight, bits=bits, group_size=group_size, sym=sym, order=order
    )
    packed = PackedWeight(
        qweight=parts["qweight"],
        qzeros=parts["qzeros"],
        scales=parts["scales"],
        group_index=parts["g_idx"],
        bits=bits,
        group_size=group_size,
        zeros_minus_one=True,
    )
    return packed, dense


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
    packed, dense = make(bits=bits, group_size=group_size, sym=sym, shuffled=shuffled)

    for widest in (16, 128):
        assert torch.equal(dense, dequantize(repack(packed, widest=widest)))


def test_rows_that_do_not_fill_their_last_block_survive() -> None:
    """Whole-row scales work for widths that are no multiple of any block."""
    packed, dense = make(num_inputs=40, bits=8, group_size=-1)
    blocked = repack(packed, widest=128)

    assert blocked.block_size == 16
    assert torch.equal(dense, dequantize(blocked))


def test_zero_points_stored_as_they_are_survive() -> None:
    """Format `gptq_v2` stores zero points without subtracting one."""
    packed, dense = make(sym=False)
    zeros = pack_along_rows(_levels(packed).T, 4).T.contiguous()
    plain = PackedWeight(
        qweight=packed.qweight,
        qzeros=zeros,
        scales=packed.scales,
        group_index=None,
        bits=4,
        group_size=64,
        zeros_minus_one=False,
    )

    assert torch.equal(dense, dequantize(repack(plain, widest=32)))


def _levels(packed: PackedWeight) -> Tensor:
    columns = [
        ((packed.qzeros[:, at // 8] >> (4 * (at % 8))) & 0xF) + 1
        for at in range(packed.scales.shape[1])
    ]
    levels: Tensor = torch.stack(columns, dim=1) & 0xF
    return levels


def test_plain_zero_points_are_left_out() -> None:
    """Symmetric layers say nothing about zero points, others do."""
    assert repack(make(sym=True)[0], widest=32).zeros is None
    assert repack(make(sym=False)[0], widest=32).zeros is not None


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


def test_uneven_groups_are_refused() -> None:
    """An order whose groups have different sizes is not silently rearranged."""
    packed, _ = make()
    index = packed.group_index
    assert index is not None
    index[0] = 2

    with pytest.raises(RepackRefused, match="does not fill its groups"):
        repack(packed, widest=32)


@pytest.mark.parametrize("part", ["scales", "qzeros", "group_index"])
def test_tensors_of_another_shape_are_refused(part: str) -> None:
    """Tensors that do not belong together are named with both shapes."""
    packed, _ = make()
    fields = {name: getattr(packed, name) for name in packed.__dataclass_fields__}
    fields[part] = fields[part][:-1]

    with pytest.raises(RepackRefused, match=r"\[.*\].*not"):
        repack(PackedWeight(**fields), widest=32)


def test_infinite_scales_are_refused() -> None:
    """A scale that is no number would make an engine that answers nonsense."""
    packed, _ = make()
    packed.scales[0, 0] = torch.inf

    with pytest.raises(RepackRefused, match="infinite or undefined"):
        repack(packed, widest=32)
