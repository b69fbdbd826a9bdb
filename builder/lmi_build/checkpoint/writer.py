"""
Safetensors shards written in one pass, the same bytes every time.

Names, dtypes and shapes are known before any data, so each header is written first
and the data follow in its order. Tensors with wider elements come first, which keeps
every tensor aligned to its own element size.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.checkpoint.header import DTYPES, LENGTH_BYTES, SPELLINGS
from lmi_build.checkpoint.reader import INDEX_NAME, SINGLE_NAME
from lmi_build.values.model import DTYPE_BITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

# What Hugging Face writes: small enough for any upload, large enough to be few.
MAX_SHARD_BYTES = 5_000_000_000
# Data begin at a multiple of this, so that mapped tensors are aligned.
_HEADER_ALIGN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """
    One tensor to write.

    Args:
        name: Its name.
        dtype: As `values.model.DTYPE_BITS` spells it.
        shape: Row-major.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Length of its data."""
        count = DTYPE_BITS[self.dtype] // 8
        for size in self.shape:
            count *= size
        return count


def plan_shards(
    tensors: Iterable[TensorPlan], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> tuple[tuple[TensorPlan, ...], ...]:
    """
    Share tensors out to files.

    Args:
        tensors: All tensors, in any order.
        max_shard_bytes: Limit of one file's data; a larger tensor stands alone.

    Returns:
        The tensors of each file, in the order of their data.
    """
    shards: list[list[TensorPlan]] = []
    room = -1
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        if tensor.num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return tuple(tuple(sorted(shard, key=_data_order)) for shard in shards)


def _data_order(tensor: TensorPlan) -> tuple[int, str]:
    return -DTYPES[SPELLINGS[tensor.dtype]][1], tensor.name


def shard_names(num_shards: int) -> tuple[str, ...]:
    """File names as Hugging Face has them."""
    if num_shards == 1:
        return (SINGLE_NAME,)
    return tuple(
        f"model-{at:05d}-of-{num_shards:05d}.safetensors"
        for at in range(1, num_shards + 1)
    )


def encode_header(tensors: Sequence[TensorPlan]) -> bytes:
    """The length prefix and JSON of a file, padded with spaces."""
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        document[tensor.name] = {
            "dtype": SPELLINGS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.num_bytes],
        }
        at += tensor.num_bytes
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % _HEADER_ALIGN)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def write_file(
    path: Path,
    tensors: Sequence[TensorPlan],
    data: Callable[[str], Iterable[bytes | memoryview]],
) -> None:
    """
    Write one file and flush it to the disk.

    Args:
        path: It appears under this name only when it is whole.
        tensors: Its tensors, in the order of their data.
        data: Gives a tensor's bytes by name, in pieces.

    Raises:
        ValueError: `data` gave another number of bytes than planned.
        OSError: The disk is full or cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(encode_header(tensors))
        for tensor in tensors:
            count = sum(stream.write(piece) for piece in data(tensor.name))
            if count != tensor.num_bytes:
                msg = f"{tensor.name}: {count} bytes, planned {tensor.num_bytes}"
                raise ValueError(msg)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def write_checkpoint(
    folder: Path,
    tensors: Iterable[TensorPlan],
    data: Callable[[str], Iterable[bytes | memoryview]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """
    Write all tensors of a model, with an index where there is more than one file.

    Args:
        folder: Where the files go; it exists.
        tensors: All tensors, in any order.
        data: Gives a tensor's bytes by name, in pieces.
        max_shard_bytes: Limit of one file's data.
    """
    shards = plan_shards(tensors, max_shard_bytes=max_shard_bytes)
    names = shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, data)
    if len(shards) == 1:
        return
    weight_map = {
        tensor.name: name
        for name, shard in zip(names, shards, strict=True)
        for tensor in shard
    }
    total = sum(tensor.num_bytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / INDEX_NAME).write_text(text, "utf-8")


def tensor_plan(name: str, tensor: Tensor) -> TensorPlan:
    """What a header will say of a tensor."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorPlan(name=name, dtype=dtype, shape=tuple(tensor.shape))
