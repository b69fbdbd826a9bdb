"""
AutoGPTQ's packed integers as ONNX Runtime's blocks, bit for bit.

Nothing is dequantized on the way: the integers of a checkpoint are the integers of
the engine, its half-precision scales are widened to float32 without rounding.

Shapes: I input channels, O output channels, G checkpoint groups, B engine blocks.

Source: AutoGPTQ `nn_modules/qlinear` (the packing), ONNX Runtime
`docs/ContribOperators.md`, operator `MatMulNBits` (the blocks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# MatMulNBits takes powers of two from 16 up.
MIN_BLOCK = 16
BYTE_BITS = 8


class RepackRefused(ValueError):
    """These tensors cannot be said in blocks; the message says why, with numbers."""


@dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """
    One linear layer as AutoGPTQ stores it.

    Args:
        qweight: int32 [I * bits / 32, O], packed along I, low bits first.
        qzeros: int32 [G, O * bits / 32], packed along O.
        scales: Floats [G, O].
        group_index: int32 [I], the group of each input channel, or None when channels
            lie in order.
        bits: 4 or 8.
        group_size: Input channels per group; -1 is all of them.
        zeros_minus_one: Whether zero points are stored less one (format `gptq`).
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    group_index: Tensor | None
    bits: int
    group_size: int
    zeros_minus_one: bool


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


def repack(weight: PackedWeight, *, widest: int) -> BlockedWeight:
    """
    Lay a layer out in blocks of at most `widest` channels, exactly.

    Raises:
        RepackRefused: Shapes disagree, or the groups cannot be said in blocks.
    """
    bits = weight.bits
    if bits not in {4, 8}:
        raise RepackRefused(f"{bits}-bit weights are not packed for MatMulNBits")
    num_inputs = weight.qweight.shape[0] * 32 // bits
    num_outputs = weight.qweight.shape[1]
    group_size = num_inputs if weight.group_size == -1 else weight.group_size
    num_groups = -(-num_inputs // group_size)
    _check_shapes(weight, num_groups, num_outputs)
    block_size = block_size_for(weight.group_size, num_inputs, widest)
    num_blocks = -(-num_inputs // block_size)
    order = _channel_order(weight.group_index, num_inputs, group_size)
    group_of_block = torch.arange(num_blocks) * block_size // group_size
    scales_ob = weight.scales.float().T[:, group_of_block]
    zeros_ob = _unpack_zeros(weight, num_outputs).T[:, group_of_block]
    return BlockedWeight(
        blocks=_pack_blocks(weight.qweight, bits, order, block_size, num_blocks),
        scales=scales_ob.contiguous().reshape(-1),
        zeros=_pack_zeros(zeros_ob, bits),
        order=order,
        bits=bits,
        block_size=block_size,
        num_inputs=num_inputs,
        num_outputs=num_outputs,
    )


def unpack_rows(packed: Tensor, bits: int) -> Tensor:
    """Integers uint8 [O, I] from int32 [O, I * bits / 32], low bits first."""
    as_bytes = _bytes_of(packed)
    if bits == BYTE_BITS:
        return as_bytes
    pairs = torch.stack((as_bytes & 0xF, as_bytes >> 4), dim=-1)
    return pairs.reshape(packed.shape[0], -1)


def pack_nibbles(values: Tensor) -> Tensor:
    """Bytes uint8 [O, ceil(n / 2)] of 4-bit values [O, n], even ones in low bits."""
    if values.shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return values[:, 0::2] | (values[:, 1::2] << 4)


def _bytes_of(packed: Tensor) -> Tensor:
    """uint8 [O, 4 n] of int32 [O, n]; little-endian, so low values come first."""
    # Flat, because a column of one word counts as contiguous with any stride.
    flat = packed.contiguous().reshape(-1).view(torch.uint8)
    return flat.reshape(packed.shape[0], -1)


def _check_shapes(weight: PackedWeight, num_groups: int, num_outputs: int) -> None:
    if tuple(weight.scales.shape) != (num_groups, num_outputs):
        raise RepackRefused(
            f"scales are {list(weight.scales.shape)}, not [{num_groups}, {num_outputs}]"
            f" as group_size {weight.group_size} needs"
        )
    packed_outputs = -(-num_outputs * weight.bits // 32)
    if tuple(weight.qzeros.shape) != (num_groups, packed_outputs):
        raise RepackRefused(
            f"qzeros are {list(weight.qzeros.shape)}, not"
            f" [{num_groups}, {packed_outputs}]"
        )
    if not torch.isfinite(weight.scales).all():
        raise RepackRefused("scales hold infinite or undefined numbers")


def _channel_order(
    group_index: Tensor | None, num_inputs: int, group_size: int
) -> Tensor | None:
    """Channels sorted by group, or None when they already are."""
    if group_index is None:
        return None
    if tuple(group_index.shape) != (num_inputs,):
        raise RepackRefused(f"g_idx is {list(group_index.shape)}, not [{num_inputs}]")
    plain = torch.arange(num_inputs) // group_size
    if torch.equal(group_index.long(), plain):
        return None
    order = torch.argsort(group_index, stable=True)
    if not torch.equal(group_index[order].long(), plain):
        raise RepackRefused(
            f"g_idx does not fill its groups with {group_size} channels each"
        )
    return order.to(torch.int32)


def _unpack_zeros(weight: PackedWeight, num_outputs: int) -> Tensor:
    zeros_go = unpack_rows(weight.qzeros, weight.bits)[:, :num_outputs]
    if weight.zeros_minus_one:
        zeros_go = (zeros_go + 1) & ((1 << weight.bits) - 1)
    return zeros_go


def _pack_blocks(
    qweight: Tensor,
    bits: int,
    order: Tensor | None,
    block_size: int,
    num_blocks: int,
) -> Tensor:
    packed = qweight.T
    if order is None:
        # Both formats put channel 2k in the low and 2k+1 in the high half of byte k.
        rows = _bytes_of(packed)
    else:
        values = unpack_rows(packed, bits)[:, order.long()]
        rows = values if bits == BYTE_BITS else pack_nibbles(values)
    row_bytes = num_blocks * block_size * bits // 8
    if rows.shape[1] < row_bytes:
        rows = torch.nn.functional.pad(rows, (0, row_bytes - rows.shape[1]))
    return rows.reshape(rows.shape[0], num_blocks, block_size * bits // 8).contiguous()


def _pack_zeros(zeros_ob: Tensor, bits: int) -> Tensor | None:
    if bool((zeros_ob == 1 << (bits - 1)).all()):
        return None
    packed = zeros_ob if bits == BYTE_BITS else pack_nibbles(zeros_ob)
    return packed.contiguous().reshape(-1)
