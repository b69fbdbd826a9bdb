"""
A checkpoint's integers as ONNX Runtime's blocks, bit for bit.

Nothing is dequantized on the way: the integers of a checkpoint are the integers of
the engine, its half-precision scales are widened to float32 without rounding.

Shapes: I input channels, O output channels, G checkpoint groups, B engine blocks.

Source: ONNX Runtime `docs/ContribOperators.md`, operator `MatMulNBits` (the blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lmi_build.checkpoint.formats.codec import Codes

# MatMulNBits takes powers of two from 16 up.
MIN_BLOCK = 16
BYTE_BITS = 8


class RepackRefused(ValueError):
    """These tensors cannot be said in blocks; the message says why, with numbers."""


@dataclass(frozen=True, kw_only=True)
class BlockedWeight:
    """
    One linear layer as `MatMulNBits` takes it.

    Args:
        blocks: uint8 [O, B, block_size * bits / 8].
        scales: float32 [O * B].
        zeros: uint8 [O * ceil(B * bits / 8)], or None for the middle of the range.
        order: int32 [I], the input channel that each position takes, or None when
            they lie in order.
        bits: 4 or 8.
        block_size: Input channels per block.
        num_inputs: I.
        num_outputs: O.
    """

    blocks: Tensor
    scales: Tensor
    zeros: Tensor | None
    order: Tensor | None
    bits: int
    block_size: int
    num_inputs: int
    num_outputs: int


def block_size_for(group_size: int, num_inputs: int, widest: int) -> int:
    """
    The widest block, up to `widest`, that never crosses a group.

    Raises:
        RepackRefused: The group is not a multiple of 16 channels.
    """
    if group_size in {-1, num_inputs}:
        # One scale for the whole row: any block will do, so take one that fits it.
        size = widest
        while size > MIN_BLOCK and num_inputs % size:
            size //= 2
        return size
    size = group_size & -group_size
    if size < MIN_BLOCK:
        raise RepackRefused(
            f"group_size {group_size} is not a multiple of {MIN_BLOCK}, the smallest"
            " block of MatMulNBits"
        )
    return min(size, widest)


def repack(codes: Codes, *, bits: int, group_size: int, widest: int) -> BlockedWeight:
    """
    Lay a layer out in blocks of at most `widest` channels, exactly.

    Args:
        codes: The layer, out of any format.
        bits: Of one code.
        group_size: Input channels of a group; -1 is all of them.
        widest: Most channels of a block.

    Raises:
        RepackRefused: The bits have no kernel, or the groups cannot be said in blocks.
    """
    if bits not in {4, 8}:
        raise RepackRefused(f"{bits}-bit weights are not packed for MatMulNBits")
    num_inputs, num_outputs = codes.code_IO.shape
    size = num_inputs if group_size == -1 else group_size
    block_size = block_size_for(group_size, num_inputs, widest)
    num_blocks = -(-num_inputs // block_size)
    order = _channel_order(codes.group_I, num_inputs, size)
    group_of_block = torch.arange(num_blocks) * block_size // size
    zeros_ob = codes.zero_GO.T[:, group_of_block]
    return BlockedWeight(
        blocks=_pack_blocks(codes.code_IO, bits, order, block_size, num_blocks),
        scales=codes.scale_GO.T[:, group_of_block].contiguous().reshape(-1),
        zeros=_pack_zeros(zeros_ob, bits),
        order=order,
        bits=bits,
        block_size=block_size,
        num_inputs=num_inputs,
        num_outputs=num_outputs,
    )


def pack_nibbles(values: Tensor) -> Tensor:
    """Bytes uint8 [O, ceil(n / 2)] of 4-bit values [O, n], even ones in low bits."""
    if values.shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return values[:, 0::2] | (values[:, 1::2] << 4)


def _channel_order(
    group_I: Tensor | None, num_inputs: int, group_size: int
) -> Tensor | None:
    """Channels sorted by group, or None when they already are."""
    if group_I is None:
        return None
    plain = torch.arange(num_inputs) // group_size
    if torch.equal(group_I.long(), plain):
        return None
    order = torch.argsort(group_I, stable=True)
    if not torch.equal(group_I[order].long(), plain):
        raise RepackRefused(
            f"g_idx does not fill its groups with {group_size} channels each"
        )
    return order.to(torch.int32)


def _pack_blocks(
    code_IO: Tensor,
    bits: int,
    order: Tensor | None,
    block_size: int,
    num_blocks: int,
) -> Tensor:
    if order is not None:
        code_IO = code_IO[order.long()]
    rows = code_IO.T.contiguous()
    rows = rows if bits == BYTE_BITS else pack_nibbles(rows)
    row_bytes = num_blocks * block_size * bits // 8
    if rows.shape[1] < row_bytes:
        rows = torch.nn.functional.pad(rows, (0, row_bytes - rows.shape[1]))
    return rows.reshape(rows.shape[0], num_blocks, block_size * bits // 8).contiguous()


def _pack_zeros(zeros_ob: Tensor, bits: int) -> Tensor | None:
    if bool((zeros_ob == 1 << (bits - 1)).all()):
        return None
    packed = zeros_ob if bits == BYTE_BITS else pack_nibbles(zeros_ob)
    return packed.contiguous().reshape(-1)
