"""
What a scale of each step's inputs can be taken into, for every layout of a block.

Shape suffixes: N query heads, H head width, I inputs of a linear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.quantizers.steps import Absorb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmi_build.catalog.architectures import Architecture
    from lmi_build.decoders.decoder_config import DecoderConfig


def absorb_in_norm(
    architecture: Architecture, name: str, *, readers: tuple[str, ...] = ()
) -> Absorb | None:
    """
    What a scale of a norm's result can go into.

    Args:
        architecture: The map.
        name: The norm; empty for none.
        readers: Linears kept in float that read the same values.

    Returns:
        The norm itself, or None where there is none.
    """
    if not name:
        return None
    offset = 1.0 if architecture.norm == "rms-plus-one" else 0.0
    return Absorb(kind="norm", name=name, rows_I=None, readers=readers, offset=offset)


def absorb_in_up(
    architecture: Architecture,
    widening: tuple[str, ...],
    weights: Mapping[str, Tensor],
) -> Absorb | None:
    """
    What a scale of the down projection's input can go into.

    Args:
        architecture: The map.
        widening: The linears before the down projection.
        weights: Of the block, by name.

    Returns:
        The up projection, of which each row feeds the channel of its number; the upper
        half of one that holds the gate too; or None where a non-linear activation
        follows the only linear.
    """
    if widening == (architecture.fused_gate_up,):
        inner = weights[architecture.fused_gate_up].shape[0] // 2
        row_I = torch.arange(inner, 2 * inner)
        return Absorb(kind="linear", name=architecture.fused_gate_up, rows_I=row_I)
    if len(widening) == 1:
        return None
    return Absorb(kind="linear", name=widening[1], rows_I=None)


def absorb_in_value(architecture: Architecture, config: DecoderConfig) -> Absorb:
    """
    What a scale of the output projection's input can go into.

    Args:
        architecture: The map.
        config: The numbers.

    Returns:
        The value projection; behind each channel stands the row of its key head and of
        its place in the head.
    """
    width, shared = config.head_dim, config.num_heads // config.num_kv_heads
    head_N = torch.arange(config.num_heads) // shared
    if not architecture.fused_qkv:
        first_N = head_N * width
    elif architecture.fused_layout == "grouped":
        first_N = (head_N * (shared + 2) + shared + 1) * width
    else:
        first_N = (config.num_heads + config.num_kv_heads + head_N) * width
    row_NH = first_N[:, None] + torch.arange(width)
    name = architecture.fused_qkv or architecture.value
    return Absorb(kind="linear", name=name, rows_I=row_NH.flatten())
