"""
What a runtime holds beside the weights of a file.

Blocks that are larger than the tensors in them, projections of a latent cache that are
kept a second time, and room for low-rank adapters.

Shapes: I input channels, O output channels, R rank of an adapter.

Sources: PyTorch, c10/cuda/CUDACachingAllocator.cpp (`should_split`,
`get_allocation_size`); vLLM, v1/attention/backends/mla/common.py
(`process_weights_after_loading`) and lora/layers/base_linear.py
(`create_lora_weights`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.catalog.runtimes import Interval
from lmi_build.sizing.lines import FLOAT_BYTES, HALF_BYTES, MemoryLine
from lmi_build.sizing.weights import (
    COLUMNS,
    FUSED,
    KEYS,
    ROWS,
    UNKNOWN,
    VOCABULARY,
    rank_bytes,
    rank_shape,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.sizing.lines import Subject
    from lmi_build.sizing.weights import WeightClass

_PAGE_BYTES = 512
_BYTE_BITS = 8
_MATRIX = 2
# Scales and zero points of quantized linears are tensors beside their codes.
_SIDE_TENSORS = 2
_FUSED_SLICES = 3
# Queries, keys and values, or gates and ups, of one layer are at most so many linears;
# where there are more, they are those of experts.
_JOINED = 3
_ADAPTED = (COLUMNS, KEYS, FUSED, ROWS, UNKNOWN)


@dataclass(slots=True)
class _Group:
    """
    Tensors that a runtime joins layer by layer.

    Args:
        count: How many a file has.
        size: Their bytes; of quantized ones those of their codes.
        side: Bytes of their scales and zero points.
    """

    count: int = 0
    size: int = 0
    side: int = 0


def rounding_line(subject: Subject, runtime: Runtime, *, tp: int) -> MemoryLine:
    """
    What blocks of memory are larger than the tensors that lie in them.

    A runtime joins what reads the same input of a layer, and its experts; each joined
    tensor lies in a block of its own.
    """
    layers, rest = subject.geometry.num_layers, runtime.unsplit_bytes
    groups: dict[tuple[str, bool], _Group] = {}
    for item in subject.table.classes:
        group = groups.setdefault((item.part, item.split == ROWS), _Group())
        whole = rank_bytes(item, subject.table, subject.scheme, runtime, tp)
        codes = _code_bytes(item, subject, runtime, tp)
        group.count += item.count
        group.size += min(whole, codes)
        group.side += max(0, whole - codes)
    high = 0
    for group in groups.values():
        joined = _joined(group, layers)
        high += min(group.size, joined * rest) + group.count * _PAGE_BYTES
        high += min(group.side, joined * _SIDE_TENSORS * rest)
    return MemoryLine(
        name="rounding of blocks",
        bytes=Interval(low=0, high=high),
        formula=f"0 to {rest} B for each tensor of a layer, its parts joined",
        source="PyTorch: c10/cuda/CUDACachingAllocator.cpp, `should_split`",
    )


def _code_bytes(item: WeightClass, subject: Subject, runtime: Runtime, tp: int) -> int:
    """Bytes of a class on a rank without what lies beside its codes."""
    if not item.quantizable or subject.scheme.packing == "none":
        return rank_bytes(item, subject.table, subject.scheme, runtime, tp)
    num_outputs, num_inputs = rank_shape(item, subject.table.heads, runtime, tp)
    bits = num_outputs * num_inputs * subject.scheme.weight_bits
    return item.count * -(-bits // _BYTE_BITS)


def _joined(group: _Group, layers: int) -> int:
    """How many tensors a group's become."""
    if group.count <= layers:
        return group.count
    # Experts beside what all tokens see are a second tensor of a layer.
    return layers * (1 if group.count <= _JOINED * layers else 2)


def copied_latent_line(subject: Subject, runtime: Runtime, *, tp: int) -> MemoryLine:
    """What expands a latent cache, a second time, by heads and in 16 bits."""
    shape = subject.cache
    latent = shape.latent_width - shape.rotary_dim
    expanded = shape.expanded_width - shape.rotary_dim
    heads = -(-shape.num_heads // tp)
    layers = shape.num_full + shape.num_sliding
    high = layers * heads * latent * expanded * HALF_BYTES
    return MemoryLine(
        name="weights: latent",
        bytes=Interval(low=0, high=high),
        formula=f"0 to {layers} layers x {heads} heads x {latent} x {expanded} x"
        f" {HALF_BYTES} B",
        source=f"{runtime.name}: MLA keeps `W_UK` and `W_UV` beside their product",
    )


def adapter_line(subject: Subject, runtime: Runtime, *, tp: int) -> MemoryLine | None:
    """Room for low-rank adapters of every linear; None where none are served."""
    adapters = subject.adapters
    if adapters is None or not adapters.count:
        return None
    width = FLOAT_BYTES if runtime.computes_wide else HALF_BYTES
    found = Interval(low=0, high=0)
    for low, high in _adapted(subject, runtime, tp):
        found += Interval(low=low, high=high)
    factor = adapters.count * adapters.rank * width
    return MemoryLine(
        name="adapters",
        bytes=Interval(low=factor * found.low, high=factor * found.high),
        formula=f"{adapters.count} adapters x rank {adapters.rank} x {width} B x"
        f" {found.low} to {found.high} channels in and out",
        source="vLLM: lora/layers/base_linear.py, `create_lora_weights`",
    )


def _adapted(subject: Subject, runtime: Runtime, tp: int) -> Iterator[tuple[int, int]]:
    """Channels in and out of every linear on a rank: for certain, and at most."""
    layers = subject.geometry.num_layers
    for item in subject.table.classes:
        if len(item.shape) != _MATRIX:
            continue
        rank_out, rank_in = rank_shape(item, subject.table.heads, runtime, tp)
        if item.split == VOCABULARY:
            # Kept whole for the embedding, and only by models that adapt it.
            yield 0, item.count * (item.shape[0] + item.shape[1])
            continue
        if item.part not in {"attention", "mlp"} and item.split != UNKNOWN:
            continue
        slices = _FUSED_SLICES if item.split == FUSED else 1
        each = item.count * (slices * rank_in + rank_out)
        certain = item.split in _ADAPTED and item.split != UNKNOWN
        yield (each if certain and not _is_expert(item, layers) else 0), each


def _is_expert(item: WeightClass, layers: int) -> bool:
    """Whether a class is that of experts, which not every release adapts."""
    return item.part == "mlp" and item.count > _JOINED * layers
