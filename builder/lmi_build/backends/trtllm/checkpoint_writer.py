"""
Rank files written in one pass over the source, no tensor of it read twice.

Every rank's header and the place of every block are known from shapes before a weight
is read. So the source is read from its first byte to its last, and each piece goes
straight to where it belongs, in as many rank files as want it. Whole rows whose dtype
stays are copied inside the kernel, parts of rows by it out of mapped pages; everything
else passes through one buffer of `CHUNK_BYTES`, or, where a matrix is stored the other
way around, through one tensor.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lmi_build.backends.trtllm.checkpoint_files import RankFiles
from lmi_build.checkpoint.reader import byte_view
from lmi_build.checkpoint.writer import TensorPlan
from lmi_build.errors import StageFailed, Unsupported
from lmi_build.values.model import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from torch import Tensor

    from lmi_build.backends.trtllm.checkpoint_plan import RankPlan
    from lmi_build.backends.trtllm.checkpoint_shards import (
        Block,
        RankLinear,
        ShardTensor,
    )
    from lmi_build.checkpoint.header import TensorEntry
    from lmi_build.checkpoint.reader import CheckpointReader

    Shapes: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]

# Two hide the reading of one tensor behind the writing of another; more only make the
# disk seek.
NUM_THREADS = 2
# Large enough that calls cost nothing, small enough for the second-level cache.
CHUNK_BYTES = 1 << 19
_HALF_BYTES = 2
# Mapped at a time: what is resident of the source.
MAPPED_BYTES = 8 << 20
# Parts of rows that are shorter are joined before they are written.
MIN_PIECE_BYTES = 512


class CodedLinears(Protocol):
    """Linears that come as codes, as tensors of TensorRT-LLM."""

    def shapes(self, linear: RankLinear) -> Shapes:
        """Dtype and shape of its tensors by full name, before any weight is read."""

    def tensors(self, linears: Sequence[RankLinear]) -> Iterator[Mapping[str, Tensor]]:
        """The tensors of each of several ranks' shares of the same parts."""


class _NoCodes:
    """For models that are float throughout."""

    def shapes(self, linear: RankLinear) -> Shapes:
        """There is none."""
        raise ValueError(f"nobody makes the codes of {linear.name}")

    def tensors(self, linears: Sequence[RankLinear]) -> Iterator[Mapping[str, Tensor]]:
        """There are none."""
        raise ValueError(f"nobody makes the codes of {linears[0].name}")


NO_CODES = _NoCodes()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """Where one block goes: the rank's tensor, and the block's first byte in it."""

    rank: int
    tensor: ShardTensor
    block: Block
    offset: int


def write_ranks(
    folder: Path,
    reader: CheckpointReader,
    plans: Sequence[RankPlan],
    *,
    coded: CodedLinears = NO_CODES,
    on_source: Callable[[int], None] = lambda _: None,
) -> None:
    """
    Write the files of all ranks.

    Args:
        folder: Where they go; it exists.
        reader: The source.
        plans: What each rank holds; their blocks lie inside the source's tensors.
        coded: Makes the tensors of linears that come as codes.
        on_source: Told how many sources are done.

    Raises:
        SourceInvalid: The source became shorter.
        Unsupported: `trtllm.float16-range`: a weight does not fit into float16.
        StageFailed: `trtllm.incomplete`: fewer bytes were written than planned.
        OSError: The disk is full or cannot be written.
    """
    targets = _by_source(plans)
    order = sorted(targets, key=reader.position)
    for name in order:
        reader.descriptor(name)  # opened here: threads only read

    def write(name: str) -> None:
        _write_source(files, reader, reader.entry(name), targets[name])

    groups = _groups(plans)
    with RankFiles(folder, [_tensor_plans(plan, coded) for plan in plans]) as files:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            try:
                for done, _ in enumerate(pool.map(write, order), start=1):
                    on_source(done)
            finally:
                pool.shutdown(cancel_futures=True)
        for done, group in enumerate(groups, start=1 + len(order)):
            _write_group(files, group, coded)
            on_source(done)
        _check_bytes(files, plans, coded)
        files.finish()


def num_sources(plans: Sequence[RankPlan]) -> int:
    """How many steps `write_ranks` tells of."""
    return len(_by_source(plans)) + len(_groups(plans))


def _by_source(plans: Iterable[RankPlan]) -> dict[str, list[_Target]]:
    targets: dict[str, list[_Target]] = defaultdict(list)
    for plan in plans:
        for tensor in plan.tensors:
            offset = 0
            for block in tensor.blocks:
                if block.source:
                    targets[block.source].append(
                        _Target(
                            rank=plan.rank, tensor=tensor, block=block, offset=offset
                        )
                    )
                offset += block.num_elements * DTYPE_BITS[tensor.dtype] // 8
    return targets


def _groups(plans: Iterable[RankPlan]) -> list[list[tuple[int, RankLinear]]]:
    """Coded linears, with the ranks that share their parts together."""
    groups: dict[tuple[str, ...], list[tuple[int, RankLinear]]] = defaultdict(list)
    for plan in plans:
        for linear in plan.linears:
            key = (linear.name, *(cut.module for cut in linear.cuts))
            groups[key].append((plan.rank, linear))
    return list(groups.values())


def _tensor_plans(plan: RankPlan, coded: CodedLinears) -> list[TensorPlan]:
    tensors = [
        TensorPlan(name=item.name, dtype=item.dtype, shape=item.shape)
        for item in plan.tensors
    ]
    made: dict[str, TensorPlan] = {}
    for linear in plan.linears:
        for name, (dtype, shape) in coded.shapes(linear).items():
            # Experts name the tensor that they are all in.
            made[name] = TensorPlan(name=name, dtype=dtype, shape=shape)
    return [*tensors, *made.values()]


def _write_source(
    files: RankFiles,
    reader: CheckpointReader,
    entry: TensorEntry,
    targets: Sequence[_Target],
) -> None:
    """Every block of one source tensor, which is read once."""
    rest = [
        target for target in targets if not _copy_rows(files, reader, entry, target)
    ]
    turned = [target for target in rest if target.tensor.transposed]
    if turned:
        whole = reader.read(entry.name).T
        for target in turned:
            _write_rows(files, whole, 0, target)
    parts = [target for target in rest if _is_part(entry, target)]
    _write_parts(files, reader, entry, parts)
    plain = [x for x in rest if not x.tensor.transposed and x not in parts]
    if plain:
        for first, piece in _row_pieces(reader, entry, plain):
            for target in plain:
                _write_rows(files, piece, first, target)


def _is_part(entry: TensorEntry, target: _Target) -> bool:
    """Whether rows are cut and nothing else happens to them, in pieces worth a name."""
    tensor, cols = target.tensor, target.block.cols
    width = (cols[1] - cols[0]) * DTYPE_BITS[tensor.dtype] // 8
    return (
        not tensor.transposed
        and not tensor.plus_one
        and tensor.dtype == entry.dtype
        and width >= MIN_PIECE_BYTES
    )


def _write_parts(
    files: RankFiles,
    reader: CheckpointReader,
    entry: TensorEntry,
    targets: Sequence[_Target],
) -> None:
    """Parts of rows, from the source's pages to the ranks' without a stop between."""
    if not targets:
        return
    element_bytes = DTYPE_BITS[entry.dtype] // 8
    row_bytes = targets[0].block.full[1] * element_bytes
    begin = min(target.block.rows[0] for target in targets)
    end = max(target.block.rows[1] for target in targets)
    step = max(1, MAPPED_BYTES // row_bytes)
    for first in range(begin, end, step):
        last = min(first + step, end)
        size = (last - first) * row_bytes
        with reader.mapped(entry.name, first * row_bytes, size) as view:
            for target in targets:
                block = target.block
                top, bottom = max(block.rows[0], first), min(block.rows[1], last)
                left, right = (col * element_bytes for col in block.cols)
                offset = target.offset + (top - block.rows[0]) * (right - left)
                pieces = [
                    view[row * row_bytes + left : row * row_bytes + right]
                    for row in range(top - first, bottom - first)
                ]
                files.write_all(target.rank, target.tensor.name, offset, pieces)
                del pieces


def _copy_rows(
    files: RankFiles, reader: CheckpointReader, entry: TensorEntry, target: _Target
) -> bool:
    """Whole rows of the same dtype lie in the source as in the rank's file."""
    tensor, block = target.tensor, target.block
    if tensor.transposed or tensor.plus_one or tensor.dtype != entry.dtype:
        return False
    width = block.full[1]
    if block.cols != (0, width):
        return False
    row_bytes = width * DTYPE_BITS[entry.dtype] // 8
    source = (reader.descriptor(entry.name), entry.begin + block.rows[0] * row_bytes)
    return files.copy(
        target.rank,
        tensor.name,
        target.offset,
        source,
        (block.rows[1] - block.rows[0]) * row_bytes,
    )


def _row_pieces(
    reader: CheckpointReader, entry: TensorEntry, targets: Sequence[_Target]
) -> Iterator[tuple[int, Tensor]]:
    """The rows that anybody wants, a chunk at a time, in one buffer used again."""
    import torch

    width = targets[0].block.full[1]
    row_bytes = width * DTYPE_BITS[entry.dtype] // 8
    begin = min(target.block.rows[0] for target in targets)
    end = max(target.block.rows[1] for target in targets)
    step = max(1, min(CHUNK_BYTES // row_bytes, end - begin))
    buffer = torch.empty((step, row_bytes), dtype=torch.uint8)
    for first in range(begin, end, step):
        rows = buffer[: min(step, end - first)]
        reader.read_into(entry.name, byte_view(rows), first * row_bytes)
        yield first, rows.view(getattr(torch, entry.dtype))


def _write_rows(files: RankFiles, piece: Tensor, first: int, target: _Target) -> None:
    """What a block has of some rows of its source."""
    import torch

    tensor, block = target.tensor, target.block
    top = max(block.rows[0], first)
    bottom = min(block.rows[1], first + len(piece))
    if top >= bottom:
        return
    dtype = getattr(torch, tensor.dtype)
    width = (block.cols[1] - block.cols[0]) * DTYPE_BITS[tensor.dtype] // 8
    offset = target.offset + (top - block.rows[0]) * width
    part = piece[top - first : bottom - first, slice(*block.cols)]
    if part.dtype != dtype and part.element_size() == _HALF_BYTES:
        # The same numbers, and three times as fast as from one half to the other.
        part = part.to(torch.float32)
    if tensor.plus_one:
        part = part.to(torch.float32) + 1.0
    data = part.to(dtype).contiguous()
    if dtype == torch.float16 and part.dtype != torch.float16:
        _check_range(data, part, block.source)
    files.write(target.rank, tensor.name, offset, byte_view(data))


def _check_range(data: Tensor, part: Tensor, source: str) -> None:
    """Float16 ends at 65504; a weight beyond it would become infinite."""
    import torch

    if bool(torch.isfinite(torch.stack(torch.aminmax(data))).all()):
        return
    lost = torch.isinf(data) & torch.isfinite(part)
    if bool(lost.any()):
        raise Unsupported(
            f"`{source}` has weights up to {float(part[lost].abs().max()):g}, float16"
            " ends at 65504",
            code="trtllm.float16-range",
            hints=("set `model.dtype: bfloat16`",),
        )


def _write_group(
    files: RankFiles, group: Sequence[tuple[int, RankLinear]], coded: CodedLinears
) -> None:
    made = coded.tensors([linear for _, linear in group])
    for (rank, linear), tensors in zip(group, made, strict=True):
        planned = coded.shapes(linear)
        number, count = linear.expert or (0, 1)
        piled = (count,) if linear.expert else ()
        for name, tensor in tensors.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            found = (dtype, (*piled, *tensor.shape))
            if planned.get(name) != found:
                msg = f"{name} is {found}, planned {planned.get(name)}"
                raise ValueError(msg)
            offset = number * tensor.numel() * tensor.element_size()
            files.write(rank, name, offset, byte_view(tensor.contiguous()))


def _check_bytes(
    files: RankFiles, plans: Sequence[RankPlan], coded: CodedLinears
) -> None:
    """Every planned byte but padding was written, none twice."""
    total = sum(t.num_bytes for plan in plans for t in _tensor_plans(plan, coded))
    padding = sum(
        block.num_elements * DTYPE_BITS[tensor.dtype] // 8
        for plan in plans
        for tensor in plan.tensors
        for block in tensor.blocks
        if not block.source
    )
    if files.num_written_bytes != total - padding:
        raise StageFailed(
            f"the rank files got {files.num_written_bytes} bytes of {total - padding}",
            code="trtllm.incomplete",
            hints=("this is a fault of lmi-build; please report it",),
        )
