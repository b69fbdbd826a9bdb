"""
Which part of which source tensor each rank of a TensorRT-LLM checkpoint holds.

All matrices are seen as [O, I], vectors as [N, 1]; a tensor of a rank is a pile of
blocks, one below the other, each a rectangle of one source tensor. That says all of
it: fused q, k and v are three blocks, a rank's share of a linear is one block of its
rows or columns, experts are a pile of blocks, a padded vocabulary ends in a block of
zeros.

Ranks are numbered as TensorRT-LLM does: rank = stage * tp + position, so that the
ranks of one pipeline stage lie together.

Sources: TensorRT-LLM 0.8.0 to 0.16, mapping.py, models/convert_utils.py,
models/llama/convert.py `load_weights_from_hf_model`, models/gpt/convert.py,
models/gemma/convert.py, examples/gptneox/convert_checkpoint.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Range: TypeAlias = tuple[int, int]
# As `linear.FusedLinear` says it: `row` is cut along its inputs.
Role: TypeAlias = Literal["qkv", "column", "row"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapping2D:
    """
    How a model is split.

    Args:
        tp: Ranks that share each layer.
        pp: Pipeline stages.
    """

    tp: int = 1
    pp: int = 1

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.tp * self.pp

    def layers(self, stage: int, num_layers: int) -> range:
        """Layers of one pipeline stage; the first stages take what is left over."""
        each, left = divmod(num_layers, self.pp)
        first = stage * each + min(stage, left)
        return range(first, first + each + (stage < left))


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """
    A rectangle of one source tensor.

    Args:
        source: Name of the tensor; empty for zeros.
        full: The whole tensor's shape as [O, I] or [N, 1].
        rows: Outputs, first and one past the last.
        cols: Inputs, first and one past the last.
    """

    source: str
    full: tuple[int, int]
    rows: Range
    cols: Range

    @property
    def num_elements(self) -> int:
        """Numbers in the rectangle."""
        return (self.rows[1] - self.rows[0]) * (self.cols[1] - self.cols[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTensor:
    """
    One tensor of one rank.

    Args:
        name: Its name in the rank's file.
        dtype: As `values.model.DTYPE_BITS` spells it.
        shape: Row-major.
        blocks: From the top down; all as wide as the tensor.
        transposed: The sources are stored as [I, O].
        plus_one: Each number is one more than in the source (Gemma's norms).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    transposed: bool = False
    plus_one: bool = False

    def __post_init__(self) -> None:
        held = sum(block.num_elements for block in self.blocks)
        if held != prod(self.shape):
            msg = f"{self.name}: blocks hold {held} numbers, its shape {self.shape}"
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """
    What one rank takes of one linear.

    Args:
        module: The linear, without `.weight`.
        full: Its shape, [O, I].
        outputs: Ranges of its outputs, in the order they are stacked.
        inputs: Range of its inputs.
    """

    module: str
    full: tuple[int, int]
    outputs: tuple[Range, ...]
    inputs: Range

    @property
    def num_outputs(self) -> int:
        """Outputs that the rank takes."""
        return sum(last - first for first, last in self.outputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankLinear:
    """
    A fused linear of one rank, whatever its numbers are made of.

    Args:
        name: Its name in the rank's file, without `.weight`.
        role: Where it stands; `qkv` and `column` are cut along outputs, `row` along
            inputs, and then every rank has the whole bias.
        cuts: The parts, stacked in this order.
        readers: Every linear that reads the same inputs, so that they share a scale.
        scale_owner: What holds a scale of the inputs, where activations are static: the
            norm before, or the module of the linear; empty where another linear of the
            same inputs sees to it.
        expert: Number of the expert and how many there are; their tensors are one, with
            the expert as first axis. None outside mixtures.
    """

    name: str
    role: Role
    cuts: tuple[Cut, ...]
    readers: tuple[str, ...] = ()
    scale_owner: str = ""
    expert: tuple[int, int] | None = None

    @property
    def num_inputs(self) -> int:
        """Inputs that the rank takes; the same for all parts."""
        first, last = self.cuts[0].inputs
        return last - first

    @property
    def num_outputs(self) -> int:
        """Outputs of all parts together."""
        return sum(cut.num_outputs for cut in self.cuts)


def share(size: int, parts: int, index: int) -> Range:
    """One of equal parts of a size that `parts` divides."""
    width = size // parts
    return index * width, (index + 1) * width


def query_heads(num_heads: int, tp: int, index: int) -> range:
    """Query heads of one rank."""
    return range(*share(num_heads, tp, index))


def key_heads(num_heads: int, tp: int, index: int) -> range:
    """
    Key heads of one rank.

    Where there are fewer heads than ranks, neighbours hold copies of the same head.
    """
    if num_heads >= tp:
        return range(*share(num_heads, tp, index))
    head = index * num_heads // tp
    return range(head, head + 1)


def joined(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Ranges with those that touch made one."""
    result: list[Range] = []
    for first, last in ranges:
        if result and result[-1][1] == first:
            result[-1] = (result[-1][0], last)
        elif last > first:
            result.append((first, last))
    return tuple(result)


def head_ranges(
    heads: range, width: int, *, stride: int = 0, start: int = 0
) -> tuple[Range, ...]:
    """
    Rows of some heads.

    Args:
        heads: Which.
        width: Rows of one head.
        stride: Rows from one head to the next; 0 means they touch.
        start: Row of head 0.
    """
    step = stride or width
    return joined((start + head * step, start + head * step + width) for head in heads)


def weight_shard(linear: RankLinear, dtype: str, *, transposed: bool) -> ShardTensor:
    """The float weight of a linear."""
    blocks = tuple(
        Block(source=f"{cut.module}.weight", full=cut.full, rows=rows, cols=cut.inputs)
        for cut in linear.cuts
        for rows in cut.outputs
    )
    return ShardTensor(
        name=f"{linear.name}.weight",
        dtype=dtype,
        shape=(linear.num_outputs, linear.num_inputs),
        blocks=blocks,
        transposed=transposed,
    )


def bias_shard(linear: RankLinear, dtype: str) -> ShardTensor:
    """The bias of a linear whose parts all have one."""
    blocks = tuple(
        Block(
            source=f"{cut.module}.bias", full=(cut.full[0], 1), rows=rows, cols=(0, 1)
        )
        for cut in linear.cuts
        for rows in cut.outputs
    )
    return ShardTensor(
        name=f"{linear.name}.bias",
        dtype=dtype,
        shape=(linear.num_outputs,),
        blocks=blocks,
    )


def vector_shard(
    name: str, source: str, size: int, dtype: str, *, plus_one: bool = False
) -> ShardTensor:
    """A whole vector, the same on every rank."""
    block = Block(source=source, full=(size, 1), rows=(0, size), cols=(0, 1))
    return ShardTensor(
        name=name, dtype=dtype, shape=(size,), blocks=(block,), plus_one=plus_one
    )


def table_shard(
    name: str, source: str, full: tuple[int, int], rows: Range, dtype: str
) -> ShardTensor:
    """
    Rows of a table, such as an embedding.

    Args:
        name: Its name in the rank's file.
        source: The table.
        full: The table's shape.
        rows: Which; those past the table's end are zeros.
        dtype: Of the checkpoint.
    """
    first, last = rows
    end, cols = min(last, full[0]), (0, full[1])
    held = Block(source=source, full=full, rows=(min(first, end), end), cols=cols)
    missing = last - max(first, end)
    zeros = Block(source="", full=(missing, full[1]), rows=(0, missing), cols=cols)
    return ShardTensor(
        name=name,
        dtype=dtype,
        shape=(last - first, full[1]),
        blocks=tuple(block for block in (held, zeros) if block.num_elements),
    )
