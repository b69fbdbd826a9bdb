"""
The blocks of one source tensor, moved to where they belong in the ranks' files.

Whole rows whose dtype stays are copied inside the kernel, parts of rows by it out of
mapped pages; everything else passes through one buffer of `CHUNK_BYTES`, or, where a
matrix is stored the other way around, through one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.checkpoint.reader import byte_view
from lmi_build.errors import Unsupported
from lmi_build.values.model import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from lmi_build.backends.trtllm.checkpoint_files import RankFiles
    from lmi_build.backends.trtllm.checkpoint_shards import Block, ShardTensor
    from lmi_build.checkpoint.header import TensorEntry
    from lmi_build.checkpoint.reader import CheckpointReader

# Large enough that calls cost nothing, small enough for the second-level cache.
CHUNK_BYTES = 1 << 19
_HALF_BYTES = 2
# Mapped at a time: what is resident of the source.
MAPPED_BYTES = 8 << 20
# Parts of rows that are shorter are joined before they are written.
MIN_PIECE_BYTES = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTarget:
    """Where one block goes: the rank's tensor, and the block's first byte in it."""

    rank: int
    tensor: ShardTensor
    block: Block
    offset: int


def write_source(
    files: RankFiles,
    reader: CheckpointReader,
    entry: TensorEntry,
    targets: Sequence[BlockTarget],
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


def _is_part(entry: TensorEntry, target: BlockTarget) -> bool:
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
    targets: Sequence[BlockTarget],
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
    files: RankFiles, reader: CheckpointReader, entry: TensorEntry, target: BlockTarget
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
    reader: CheckpointReader, entry: TensorEntry, targets: Sequence[BlockTarget]
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


def _write_rows(
    files: RankFiles, piece: Tensor, first: int, target: BlockTarget
) -> None:
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
