"""
Lengths and heads of NxD Inference's graphs.

One graph per context bucket, that a prompt is padded to, and one per token bucket, that
the key-value cache is read up to.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# The smallest bucket that NxD Inference makes of itself: `generate_buckets(128, ...)`
# in models/model_base.py at 0.1.1 and modules/autobucketing.py at 0.9.
SMALLEST_BUCKET = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class NxdHeads:
    """
    What a number of cores makes of a model's heads.

    Args:
        mode: `mha` (as many key heads as query heads), `even` (key heads are spread as
            they are), `replicate-to-tp-degree` (one key head on each core) or
            `convert-to-mha` (each query head with a key head of its own).
        num_attention_heads: Query heads after padding.
        num_key_value_heads: Key and value heads after copies and padding.
    """

    mode: str
    num_attention_heads: int
    num_key_value_heads: int


def generated_buckets(longest: int) -> tuple[int, ...]:
    """
    The buckets that NxD Inference makes of itself.

    Args:
        longest: The last bucket, in tokens.

    Returns:
        Powers of two from 128 on, but for one near the last, which comes as it is:
        `generated_buckets(1500)` is `(128, 256, 512, 1024, 1500)` and
        `generated_buckets(1100)` is `(128, 256, 512, 1100)`.

    Source: `generate_buckets` in modules/autobucketing.py, 0.1.0 to 0.9.
    """
    if longest == SMALLEST_BUCKET:
        return (longest,)
    first, last = int(log2(SMALLEST_BUCKET)), round(log2(longest))
    return (*(2**power for power in range(first, last)), longest)


def bucket_list(
    given: Sequence[int] | None, longest: int, *, enabled: bool
) -> tuple[int, ...]:
    """
    The buckets of one of the two models.

    Args:
        given: `context_encoding_buckets` or `token_generation_buckets`, or None.
        longest: `max_context_length` or `max_length`, in tokens.
        enabled: `enable_bucketing`; without it there is one graph, whatever is given.

    Source: `enable_context_encoding` and `enable_token_generation` in
    models/model_base.py, 0.1.1.
    """
    if not enabled:
        return (longest,)
    return tuple(sorted(given)) if given is not None else generated_buckets(longest)


def nxd_heads(
    tensor_parallel_size: int, num_attention_heads: int, num_key_value_heads: int
) -> NxdHeads:
    """
    How heads are padded and copied, and which mode that is.

    Args:
        tensor_parallel_size: Cores that share the heads.
        num_attention_heads: Query heads of the model.
        num_key_value_heads: Key and value heads of the model.

    Returns:
        `nxd_heads(32, 56, 8)` has 64 query heads and one key head on each core.

    Source: `determine_sharding_strategy` and `get_shardable_head_counts` in
    modules/attention/gqa.py, 0.1.1; neuron/models/inference/backend/modules/attention
    in optimum-neuron 0.4.
    """
    queries = -(-num_attention_heads // tensor_parallel_size) * tensor_parallel_size
    if num_attention_heads == num_key_value_heads:
        return _heads("mha", queries, queries)
    if num_key_value_heads % tensor_parallel_size == 0:
        return _heads("even", queries, num_key_value_heads)
    if tensor_parallel_size % num_key_value_heads == 0:
        return _heads("replicate-to-tp-degree", queries, tensor_parallel_size)
    return _heads("convert-to-mha", queries, queries)


def cache_bytes_per_core(
    heads: NxdHeads,
    *,
    tensor_parallel_size: int,
    num_layers: int,
    head_dim: int,
    positions: int,
    batch_size: int,
    element_bytes: int,
) -> int:
    """
    Bytes of the key-value cache on each core.

    Args:
        heads: What became of the heads.
        tensor_parallel_size: Cores that share them.
        num_layers: Decoder blocks.
        head_dim: Width of one head.
        positions: Length of the cache, in tokens.
        batch_size: Requests in it.
        element_bytes: Bytes of one element.
    """
    per_core = -(-heads.num_key_value_heads // tensor_parallel_size)
    elements = 2 * num_layers * per_core * head_dim * positions * batch_size
    return elements * element_bytes


def _heads(mode: str, queries: int, keys: int) -> NxdHeads:
    return NxdHeads(mode=mode, num_attention_heads=queries, num_key_value_heads=keys)
