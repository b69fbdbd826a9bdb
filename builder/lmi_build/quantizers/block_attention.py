"""
A block's attention, from its input to the output projection's input.

Shape suffixes: S samples of one chunk, L tokens of a sample, D residual width, N query
heads, K key and value heads, H head width, I outputs of a projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from lmi_build.decoders.attention import Scores, alibi_bias, attend
from lmi_build.decoders.rotary import RotaryTables, rotary_tables, rotate

if TYPE_CHECKING:
    from lmi_build.quantizers.decoder import Block


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionTables:
    """
    What hangs on the length of the samples alone.

    Args:
        scores: What happens to a product before the softmax.
        rotary: Turns of queries and keys; None where positions come in otherwise.
    """

    scores: Scores
    rotary: RotaryTables | None


def attention(block: Block, normed_SLD: Tensor) -> Tensor:
    """
    Mix the values of one chunk.

    Args:
        block: The block; its tables are made at the first call.
        normed_SLD: What the projections read.

    Returns:
        [S, L, N * H], heads side by side.
    """
    query_SNLH, key_SKLH, value_SKLH = _heads(block, normed_SLD)
    if block.tables is None:
        block.tables = _tables(block, query_SNLH)
    rotary = block.tables.rotary
    if rotary is not None:
        query_SNLH = rotate(query_SNLH, rotary)
        key_SKLH = rotate(key_SKLH, rotary)
    if block.kv_observer is not None:
        block.kv_observer(key_SKLH, value_SKLH)
    return attend(query_SNLH, key_SKLH, value_SKLH, block.tables.scores)


def _heads(block: Block, x_SLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [S, N, L, H], keys and values [S, K, L, H], not yet rotated."""
    arch, config = block.architecture, block.config
    heads, key_heads = config.num_heads, config.num_kv_heads
    if arch.fused_qkv:
        y = block.linear(arch.fused_qkv, x_SLD)
        if arch.fused_layout == "grouped":
            y = torch.unflatten(y, -1, (key_heads, -1, config.head_dim))
            query = y[..., :-2, :].flatten(2, 3)
            key, value = y[..., -2, :], y[..., -1, :]
        else:
            y = torch.unflatten(y, -1, (-1, config.head_dim))
            query, key = y[..., :heads, :], y[..., heads:-key_heads, :]
            value = y[..., -key_heads:, :]
    else:
        names = (arch.query, arch.key, arch.value)
        query, key, value = block.linears(names, x_SLD)
        query = _normed_heads(block, arch.query_norm, query, heads)
        key = _normed_heads(block, arch.key_norm, key, key_heads)
        value = torch.unflatten(value, -1, (key_heads, -1))
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def _normed_heads(block: Block, name: str, x_SLI: Tensor, heads: int) -> Tensor:
    """Split heads; normed all together, each with one weight or with its own."""
    weight = block.weights.get(name) if name else None
    if weight is None:
        return torch.unflatten(x_SLI, -1, (heads, -1))
    if weight.ndim > 1:
        x_SLNH = torch.unflatten(x_SLI, -1, (heads, -1))
        width, eps = x_SLNH.shape[-1:], block.config.norm_eps
        return functional.layer_norm(x_SLNH, width, eps=eps) * weight
    if weight.shape[0] == x_SLI.shape[-1]:
        return torch.unflatten(block.norm(name, x_SLI), -1, (heads, -1))
    return block.norm(name, torch.unflatten(x_SLI, -1, (heads, -1)))


def _tables(block: Block, like_SNLH: Tensor) -> AttentionTables:
    """For samples of this length, in this dtype and on this device."""
    config, length = block.config, like_SNLH.shape[2]
    dtype, device = like_SNLH.dtype, like_SNLH.device
    rope, rotary = config.rope_of(block.index), None
    if rope is not None:
        rotary = rotary_tables(
            rope,
            num_tokens=length,
            pairs=block.architecture.rotary == "pairs",
            dtype=dtype,
            device=device,
        )
    bias_NL = None
    if config.alibi:
        bias_NL = alibi_bias(
            config.alibi,
            num_heads=config.num_heads,
            num_tokens=length,
            head_dim=config.head_dim,
            dtype=dtype,
            device=device,
        )
    window = config.window_of(block.index)
    scores = Scores(
        scale=config.score_scale_of(block.index),
        softcap=config.score_softcap,
        window=window if window is not None and window < length else None,
        bias_NL=bias_NL,
    )
    return AttentionTables(scores=scores, rotary=rotary)
