"""
Everything a model takes on one device, line by line.

Weights and the cache are counted; the rest are rules of thumb, named as such, each with
an interval that measurements of others lie in (docs/concepts/sizing.md).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from lmi_build.catalog.runtimes import Interval
from lmi_build.sizing.beside import adapter_line, copied_latent_line, rounding_line
from lmi_build.sizing.cache import cache_bytes
from lmi_build.sizing.lines import (
    FLOAT_BYTES,
    HALF_BYTES,
    MemoryLine,
    Subject,
    total,
)
from lmi_build.sizing.weights import UNKNOWN, rank_bytes
from lmi_build.values.model import DTYPE_BITS

__all__ = [
    "MemoryLine",
    "Subject",
    "held_lines",
    "memory_lines",
    "num_tokens",
    "rotary_line",
    "total",
    "weight_lines",
]

if TYPE_CHECKING:
    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.sizing.weights import WeightClass
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.quant import QuantScheme

# Rules of thumb. The widest layer's results once, up to three times where kernels do
# not write in place; logits in the model's dtype, up to five copies in float32 where
# sampling sorts them and takes their probabilities.
_MOST_LAYERS = 3
_MOST_LOGITS = 5
_FRAGMENT_SHARE = 25
_NONE = Interval(low=0, high=0)
# What the first or the last stage may have all of, and others nothing.
_ENDS = frozenset(
    {
        "weights: embedding",
        "weights: positions",
        "weights: head",
        "adapters",
        "rounding of blocks",
    }
)


def memory_lines(
    subject: Subject, bounds: Bounds, runtime: Runtime, *, tp: int, pp: int = 1
) -> tuple[MemoryLine, ...]:
    """
    What each device must have; with several stages, any of them.

    Args:
        subject: The model.
        bounds: What is served.
        runtime: Who serves it.
        tp: Ranks a layer is split over.
        pp: Stages the layers are split over.
    """
    weights = held_lines(subject, runtime, tp=tp, pp=pp)
    cache = _cache_line(subject, bounds, runtime, tp)
    cache = _staged(cache, subject, pp) if pp > 1 else cache
    work = (
        *_draft_lines(subject, bounds, runtime, tp),
        rotary_line(subject, runtime),
        _activations(subject, bounds, runtime, tp),
        _logits(subject, bounds, runtime),
    )
    held = total((*weights, cache, *work))
    return (*weights, cache, *work, *_reserves(runtime, tp * pp, cache.bytes, held))


@lru_cache(maxsize=256)
def held_lines(
    subject: Subject, runtime: Runtime, *, tp: int, pp: int = 1
) -> tuple[MemoryLine, ...]:
    """
    Weights and what stays beside them from the start, whatever is served.

    Kept for a while, as halving asks for the same model again and again.

    Args:
        subject: The model.
        runtime: Who serves it.
        tp: Ranks a layer is split over.
        pp: Stages the layers are split over.
    """
    lines = list(weight_lines(subject, runtime, tp=tp))
    if subject.cache.latent_width and runtime.copies_latent:
        lines.append(copied_latent_line(subject, runtime, tp=tp))
    adapters = adapter_line(subject, runtime, tp=tp)
    if adapters is not None:
        lines.append(adapters)
    if runtime.unsplit_bytes:
        lines.append(rounding_line(subject, runtime, tp=tp))
    if pp > 1:
        return tuple(_staged(line, subject, pp) for line in lines)
    return tuple(lines)


def _cache_line(
    subject: Subject, bounds: Bounds, runtime: Runtime, tp: int
) -> MemoryLine:
    return MemoryLine(
        name="key-value cache",
        bytes=cache_bytes(
            subject.cache,
            bounds,
            runtime,
            dtype_bits=subject.cache_bits_in(runtime),
            tp=tp,
        ),
        formula=_cache_formula(subject, bounds, runtime, tp),
        source="arXiv:2305.13245, arXiv:2309.06180",
    )


def _draft_lines(
    subject: Subject, bounds: Bounds, runtime: Runtime, tp: int
) -> tuple[MemoryLine, ...]:
    """A model that drafts: its weights, and its cache of the same tokens."""
    draft = subject.draft
    if draft is None:
        return ()
    weights = (*held_lines(draft, runtime, tp=tp), rotary_line(draft, runtime))
    cache = _cache_line(draft, bounds, runtime, tp)
    return (
        MemoryLine(
            name="draft model: weights",
            bytes=total(weights),
            formula="sum of its lines, split over the same ranks",
            source=weights[0].source,
        ),
        replace(cache, name="draft model: cache"),
    )


def num_tokens(bounds: Bounds, runtime: Runtime) -> int:
    """Packed tokens of one forward pass; what the runtime takes where none is said."""
    if bounds.max_num_tokens is not None:
        return bounds.max_num_tokens
    asked = bounds.max_batch_size * max(1, bounds.max_input_len)
    return min(asked, max(runtime.max_num_tokens, bounds.max_input_len))


def weight_lines(
    subject: Subject, runtime: Runtime, *, tp: int
) -> tuple[MemoryLine, ...]:
    """What the weights take on one of `tp` ranks, by part."""
    parts: dict[str, Interval] = {}
    for item in subject.table.classes:
        size = rank_bytes(item, subject.table, subject.scheme, runtime, tp)
        low = rank_bytes(item, subject.table, subject.scheme, runtime, tp, lean=True)
        low = -(-low // tp) if item.split == UNKNOWN else low
        found = Interval(low=low, high=size * _widening(item, runtime))
        if item.part == "head" and subject.table.tied:
            found = _tied(size, runtime)
        parts[item.part] = parts.get(item.part, _NONE) + found
    if "head" not in parts and not runtime.shares_tied:
        parts["head"] = _copied_head(subject, runtime, tp)
    return tuple(
        MemoryLine(
            name=f"weights: {part}",
            bytes=size,
            formula=_weight_formula(part, subject.scheme, runtime, tp),
            source="tensor shapes of the files' headers",
        )
        for part, size in parts.items()
    )


def _copied_head(subject: Subject, runtime: Runtime, tp: int) -> Interval:
    """A head made of the embedding; it is split, even where the embedding is not."""
    found = _NONE
    for item in subject.table.classes:
        if item.part == "embedding":
            head = replace(item, part="head")
            size = rank_bytes(head, subject.table, subject.scheme, runtime, tp)
            found += _tied(size * _widening(item, runtime), runtime)
    return found


def _widening(item: WeightClass, runtime: Runtime) -> int:
    """How many times as large a class may be held as it is stored."""
    is_half = DTYPE_BITS[item.dtype] == 8 * HALF_BYTES
    wide = runtime.computes_wide or (runtime.wide_routers and item.part == "router")
    return 2 if wide and is_half and not item.quantizable else 1


def _staged(line: MemoryLine, subject: Subject, pp: int) -> MemoryLine:
    """A line of all layers as one of the fewest or the most layers of a stage."""
    layers = subject.geometry.num_layers
    size = line.bytes
    if line.name in _ENDS:
        staged = Interval(low=0, high=size.high)
    else:
        staged = Interval(
            low=size.low * (layers // pp) // layers,
            high=-(-size.high * -(-layers // pp) // layers),
        )
    return replace(line, bytes=staged, formula=f"{line.formula} / {pp} stages")


def rotary_line(subject: Subject, runtime: Runtime) -> MemoryLine:
    """Sines and cosines of every position that the model has."""
    rows = subject.cache.rotary_rows or subject.geometry.max_position_embeddings
    values = rows * subject.cache.rotary_dim
    low, high = runtime.rotary_bytes
    return MemoryLine(
        name="rotary tables",
        bytes=Interval(low=values * low, high=values * high),
        formula=f"{rows} rows x {subject.cache.rotary_dim} channels x {low} to {high}"
        " B",
        source=f"{runtime.name}: a table for all positions of the model",
    )


def _tied(size: int, runtime: Runtime) -> Interval:
    """A head that a file holds beside the embedding that it equals."""
    return Interval(low=0, high=0 if runtime.shares_tied else size)


def _weight_formula(part: str, scheme: QuantScheme, runtime: Runtime, tp: int) -> str:
    whole = part in {"norm", "router", "positions"} or (
        part == "embedding" and not runtime.splits_embedding
    )
    split = f" / {tp} ranks" if tp > 1 and not whole else ""
    if part not in {"attention", "mlp"} or scheme.packing == "none":
        return f"sum of elements x bytes{split}"
    return (
        f"{scheme.weight_bits}-bit codes + scales + zero points, `{scheme.packing}`"
        f"{split}"
    )


def _cache_formula(subject: Subject, bounds: Bounds, runtime: Runtime, tp: int) -> str:
    shape = subject.cache
    values = shape.token_layer_values(runtime, tp)
    layers = shape.num_full + shape.num_sliding
    width = subject.cache_bits_in(runtime) // 8
    text = (
        f"{layers} layers x {values.high} values x {width} B x"
        f" {bounds.max_batch_size} requests x {bounds.max_seq_len} tokens"
    )
    if runtime.block_tokens > 1:
        text += f", in blocks of {runtime.block_tokens}"
    if shape.num_sliding:
        text += f"; {shape.num_sliding} layers may keep {shape.window} tokens only"
    return text


def _activations(
    subject: Subject, bounds: Bounds, runtime: Runtime, tp: int
) -> MemoryLine:
    geometry, tokens = subject.geometry, num_tokens(bounds, runtime)
    heads = subject.table.heads
    wide = max(
        3 * (-(-geometry.intermediate_size // tp)),
        heads.rank_fused_width(tp) + geometry.hidden_size,
    )
    width = FLOAT_BYTES if runtime.computes_wide else HALF_BYTES
    row = width * (2 * geometry.hidden_size + wide)
    return MemoryLine(
        name="activations",
        bytes=Interval(low=tokens * row // 2, high=_MOST_LAYERS * tokens * row),
        formula=f"{tokens} tokens x {row} B of the widest layer, x 0.5 to"
        f" {_MOST_LAYERS}",
        source="rule of thumb",
    )


def _logits(subject: Subject, bounds: Bounds, runtime: Runtime) -> MemoryLine:
    del runtime
    rows = bounds.max_batch_size * bounds.max_beam_width
    values = rows * subject.geometry.vocab_size
    return MemoryLine(
        name="logits and sampling",
        bytes=Interval(
            low=values * HALF_BYTES,
            high=values * (HALF_BYTES + _MOST_LOGITS * FLOAT_BYTES),
        ),
        formula=f"{rows} requests x {subject.geometry.vocab_size} x"
        f" {HALF_BYTES} to {HALF_BYTES + _MOST_LOGITS * FLOAT_BYTES} B",
        source="rule of thumb",
    )


def _reserves(
    runtime: Runtime, tp: int, cache: Interval, held: Interval
) -> tuple[MemoryLine, ...]:
    thumb = "rule of thumb"
    lines = [
        MemoryLine(
            name="context and libraries",
            bytes=runtime.context,
            formula="driver, kernels and workspaces of one process",
            source=thumb,
        )
    ]
    if tp > 1:
        lines.append(
            MemoryLine(
                name="communication",
                bytes=runtime.communication,
                formula="buffers between ranks",
                source=thumb,
            )
        )
    if runtime.graphs.high:
        lines.append(
            MemoryLine(
                name="captured graphs",
                bytes=runtime.graphs,
                formula="none where they are switched off",
                source=thumb,
            )
        )
    lines.append(
        MemoryLine(
            name="fragmentation",
            bytes=Interval(low=0, high=held.high // _FRAGMENT_SHARE),
            formula=f"0 to 1/{_FRAGMENT_SHARE} of what is allocated",
            source=thumb,
        )
    )
    return (*lines, *_left_free(runtime, cache, total(tuple(lines)) + held))


def _left_free(
    runtime: Runtime, cache: Interval, everything: Interval
) -> tuple[MemoryLine, ...]:
    """What a runtime's default keeps out of use; none where it is set to nothing."""
    of_all, of_cache = runtime.free_share
    base, share = (everything, of_all) if of_all else (cache, of_cache)
    if not share:
        return ()
    return (
        MemoryLine(
            name="left free",
            bytes=Interval(low=0, high=round(base.high * share / (1 - share))),
            formula=f"0 to {share:.0%} of the device"
            if of_all
            else f"0 to {share:.0%} of what the cache may take",
            source=runtime.source,
        ),
    )
