"""
How Transformers NeuronX lays attention heads over cores.

Where key and value heads are fewer than query heads there are four ways to share them
out. The library falls back from one to another with a warning in a log; here the way it
ends up with is computed, with the padding and the replication that it costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmi_build.digest import JSONValue
    from lmi_build.values.model import ModelGeometry

# Values of `group_query_attention`: `GQA` in transformers_neuronx/constants.py.
SHARD_OVER_HEADS = "shard-over-heads"
SHARD_OVER_BATCH = "shard-over-batch"
REPLICATED_HEADS = "replicated-heads"
ALL_GATHER_HEADS = "all-gather-heads"
MODES = (SHARD_OVER_HEADS, SHARD_OVER_BATCH, REPLICATED_HEADS, ALL_GATHER_HEADS)
# Columns of a tile that `qkv_tiling` and `weight_tiling` round up to: `TILE_SIZE`.
TILE = 128
# From here on heads are replicated no further than to one for each core.
_PARTIAL_REPLICATION = (0, 11)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadTerms:
    """
    What decides how heads are laid out.

    Args:
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Width of one head, as the library computes it: hidden size over heads.
        tensor_parallel_size: Cores.
        row: Major and minor version of transformers-neuronx, such as `0.12`.
        requested: `group_query_attention`, or None.
        batch_size: Of generation.
        continuous: Requests are batched continuously, so prompts are computed one by
            one.
        has_context: There is a graph for prompts.
        qkv_tiling: Each core's columns are rounded up to whole tiles.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    tensor_parallel_size: int
    row: str
    requested: str | None = None
    batch_size: int = 1
    continuous: bool = False
    has_context: bool = True
    qkv_tiling: bool = False

    @property
    def version(self) -> tuple[int, ...]:
        """The row as numbers, which compare as versions do."""
        return tuple(map(int, self.row.split(".")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """
    Heads as the cores hold them.

    Args:
        mode: One of `MODES`, or None where every query head has its own key head.
        reasons: Why it is not the mode asked for, one for each step down.
        num_heads: Query heads with padding.
        num_kv_heads: Key and value heads with replication and padding.
        kv_replication: How often each key and value head is held; 0 where they are
            padded only.
        query_width: Columns of the query weight, over all cores.
        kv_width: Columns of the key weight, over all cores; the value weight is like
            it.
        output_width: Rows of the output weight, over all cores.
        cache_heads: Key and value heads in the cache of one core.
        batch_shards: Parts that the cache's batch is split into.
    """

    mode: str | None
    reasons: tuple[str, ...]
    num_heads: int
    num_kv_heads: int
    kv_replication: int
    query_width: int
    kv_width: int
    output_width: int
    cache_heads: int
    batch_shards: int = 1

    def to_json(self) -> dict[str, JSONValue]:
        """The layout as it stands in manifests."""
        return {
            "group_query_attention": self.mode,
            "reasons": list(self.reasons),
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "kv_replication": self.kv_replication,
        }


def round_up(value: int, divisor: int) -> int:
    """The smallest multiple of `divisor` that is not below `value`."""
    return -(-value // divisor) * divisor


def padded_vocabulary(vocab_size: int, tensor_parallel_size: int) -> int:
    """
    Columns of the vocabulary after padding, over all cores.

    Source: `DecoderLmHeadForSamplingNoEmbedding.to_neuron`, 0.9 to 0.13, without
    `NEURON_VOCAB_PAD_DIVISOR` in the environment.
    """
    return round_up(vocab_size, tensor_parallel_size)


def head_terms(
    geometry: ModelGeometry, *, tensor_parallel_size: int, row: str
) -> HeadTerms:
    """
    The terms of a model, with nothing asked for.

    Args:
        geometry: The model's sizes.
        tensor_parallel_size: Cores.
        row: Major and minor version of transformers-neuronx.
    """
    return HeadTerms(
        num_heads=geometry.num_attention_heads,
        num_kv_heads=geometry.num_key_value_heads,
        head_dim=geometry.hidden_size // geometry.num_attention_heads,
        tensor_parallel_size=tensor_parallel_size,
        row=row,
    )


def effective_mode(terms: HeadTerms) -> tuple[str | None, tuple[str, ...]]:
    """
    The mode that the library ends up with, and why it left others.

    Every decoder of a model (weights, generation, each prompt length) checks the mode
    that the one before it left in the shared configuration.

    Args:
        terms: Heads, cores and what was asked for.

    Returns:
        One of `MODES` or None, and one reason for each step down.

    Source: `check_gqa_fallback` in decoder.py, 0.9 to 0.13.
    """
    batches = [terms.batch_size, terms.batch_size]
    if terms.has_context:
        batches.append(1 if terms.continuous else terms.batch_size)
    mode, reasons = terms.requested, list[str]()
    for batch in batches:
        mode, more = _step(mode, batch, terms)
        reasons += more
    return mode, tuple(reasons)


def lay_out(terms: HeadTerms) -> Heads:
    """
    Heads as the cores will hold them.

    Args:
        terms: Heads, cores and what was asked for.

    Source: `DecoderLayer.to_neuron` and `init_caches` in decoder.py and
    `get_qkv_padding` in utils.py, 0.9 to 0.13.
    """
    mode, reasons = effective_mode(terms)
    tp, head_dim = terms.tensor_parallel_size, terms.head_dim
    num_heads = round_up(terms.num_heads, tp)
    num_kv_heads, replication = _kv_heads(mode, num_heads, terms)
    query_width = output_width = num_heads * head_dim
    if terms.qkv_tiling and mode != ALL_GATHER_HEADS:
        query_width = round_up(output_width // tp, TILE) * tp
    kv_width = num_kv_heads * head_dim
    if num_kv_heads == terms.num_heads:
        kv_width = query_width
    over_batch = mode == SHARD_OVER_BATCH
    cached = num_kv_heads if over_batch else round_up(num_kv_heads, tp) // tp
    return Heads(
        mode=mode,
        reasons=reasons,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        kv_replication=replication,
        query_width=query_width,
        kv_width=kv_width,
        output_width=output_width,
        cache_heads=cached,
        batch_shards=tp if over_batch else 1,
    )


def head_problems(terms: HeadTerms, *, cache_layout: str = "SBH") -> Iterator[Problem]:
    """
    Why heads cannot be laid out as a recipe asks.

    Args:
        terms: Heads, cores and what was asked for.
        cache_layout: `SBH` or `BSH`.
    """
    path = "compile.options.group_query_attention"
    heads = lay_out(terms)
    if terms.requested is not None and heads.mode != terms.requested:
        yield Problem(
            code="neuronx.gqa-fallback",
            message=f"`{terms.requested}` would silently become `{heads.mode}`:"
            f" {heads.reasons[0]}",
            path=path,
            hint=f"write `group_query_attention: {heads.mode}`, or remove the line",
        )
        return
    if heads.mode == SHARD_OVER_BATCH and cache_layout == "BSH":
        yield Problem(
            code="neuronx.gqa-layout",
            message="`shard-over-batch` splits the cache over its batch, which the"
            " cache layout `BSH` does not allow",
            path=path,
            hint="remove `cache_layout`, or `group_query_attention`",
        )
    if heads.kv_width % terms.tensor_parallel_size:
        yield Problem(
            code="neuronx.heads",
            message=f"{heads.num_kv_heads} key heads of {terms.head_dim} make"
            f" {heads.kv_width} columns, which {terms.tensor_parallel_size} cores"
            " cannot share",
            path="compile.tensor_parallel_size",
            hint=_fewer_cores(terms),
        )


def explain_heads(terms: HeadTerms) -> tuple[str, ...]:
    """
    One line for each thing about heads that a recipe does not say.

    Args:
        terms: Heads, cores and what was asked for.
    """
    heads, tp = lay_out(terms), terms.tensor_parallel_size
    lines = []
    if heads.mode is not None:
        why = f": {heads.reasons[-1]}" if heads.reasons else ""
        lines.append(f"group_query_attention = {heads.mode}{why}")
    if heads.num_heads != terms.num_heads:
        lines.append(
            f"query heads {terms.num_heads} -> {heads.num_heads}: padded to a multiple"
            f" of {tp} cores"
        )
    if heads.kv_replication > 1:
        lines.append(
            f"key and value heads {terms.num_kv_heads} -> {heads.num_kv_heads}: each"
            f" is held {heads.kv_replication} times"
        )
    elif heads.num_kv_heads != terms.num_kv_heads:
        lines.append(
            f"key and value heads {terms.num_kv_heads} -> {heads.num_kv_heads}: padded"
            f" to one for each core"
        )
    return tuple(lines)


def _step(
    mode: str | None, batch: int, terms: HeadTerms
) -> tuple[str | None, Sequence[str]]:
    """What one decoder makes of the mode it finds."""
    tp, heads, kv_heads = (
        terms.tensor_parallel_size,
        terms.num_heads,
        terms.num_kv_heads,
    )
    if mode is None and heads == kv_heads:
        return None, ()
    if mode == REPLICATED_HEADS:
        return mode, ()
    found, reasons = mode or SHARD_OVER_HEADS, list[str]()
    if mode == SHARD_OVER_BATCH:
        if batch % tp == 0:
            return mode, ()
        found = SHARD_OVER_HEADS
        reasons.append(f"a batch of {batch} is no multiple of {tp} cores")
    elif mode == ALL_GATHER_HEADS:
        if kv_heads * terms.head_dim % tp:
            found = SHARD_OVER_HEADS
            reasons.append(
                f"{kv_heads} key heads of {terms.head_dim} do not split over {tp} cores"
            )
        padding = -heads % tp
        if padding % kv_heads == 0:
            return found, reasons
        found = SHARD_OVER_HEADS
        reasons.append(
            f"{padding} padded query heads do not spread over {kv_heads} key heads"
        )
    if kv_heads % tp:
        found = REPLICATED_HEADS
        reasons.append(f"{kv_heads} key heads are no multiple of {tp} cores")
    return found, reasons


def _kv_heads(mode: str | None, padded: int, terms: HeadTerms) -> tuple[int, int]:
    """Key and value heads with replication or padding, and how often each is held."""
    heads, kv_heads = terms.num_heads, terms.num_kv_heads
    if heads == kv_heads or mode != REPLICATED_HEADS:
        return kv_heads, 1
    if terms.version < _PARTIAL_REPLICATION:
        return heads, heads // kv_heads
    wanted = _wanted_kv_heads(padded, terms)
    if wanted == kv_heads:
        return kv_heads, 1
    extra = padded - heads
    full = wanted % kv_heads or (
        terms.version > _PARTIAL_REPLICATION and wanted == padded and extra > 0
    )
    ratio = (wanted - extra if full else wanted) // kv_heads
    return (wanted, 0) if ratio == 0 else (kv_heads * ratio, ratio)


def _wanted_kv_heads(padded: int, terms: HeadTerms) -> int:
    """`get_qkv_padding`: to one for each core where that works, else to all heads."""
    heads, kv_heads, tp = (
        terms.num_heads,
        terms.num_kv_heads,
        terms.tensor_parallel_size,
    )
    extra = padded - heads
    ratio = heads // kv_heads
    spreads = heads % tp == 0 or (extra % kv_heads == 0 and extra > 0)
    if kv_heads < tp and tp % kv_heads == 0 and spreads:
        ratio = tp // kv_heads
    elif padded * kv_heads == heads * tp:
        ratio = 1
    wanted = max(kv_heads * ratio, tp)
    return padded if wanted == heads else wanted


def _fewer_cores(terms: HeadTerms) -> str:
    fitting = [
        size
        for size in range(1, terms.tensor_parallel_size)
        if terms.num_kv_heads * terms.head_dim % size == 0
    ]
    return f"set `tensor_parallel_size: {fitting[-1]}`, or another divisor"
