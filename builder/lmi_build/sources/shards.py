"""
Write safetensors files tensor by tensor, without holding the model.

Every name, type and shape is known before the first byte, so the header is written
first and the data streams behind it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from lmi_build.checkpoint.header import SPELLINGS
from lmi_build.sources.selection import INDEX
from lmi_build.values.model import DTYPE_BITS

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.model import TensorFact

# transformers' own shard size up to version 4; small enough to hash, copy and resume.
SHARD_BYTES = 5_000_000_000

Chunks = Callable[["TensorFact"], Iterable[bytes]]


def tensor_bytes(fact: TensorFact) -> int:
    """Bytes of a tensor's data."""
    return fact.num_elements * DTYPE_BITS[fact.dtype] // 8


def write_shard(path: Path, facts: Sequence[TensorFact], chunks: Chunks) -> None:
    """
    Write one file.

    Args:
        path: Where.
        facts: Tensors in the order of their data.
        chunks: Gives a tensor's bytes, in pieces.

    Raises:
        ValueError: A tensor gave more or fewer bytes than its shape needs.
        OSError: The disk refused.
    """
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for fact in facts:
        end = position + tensor_bytes(fact)
        table[fact.name] = {
            "dtype": SPELLINGS[fact.dtype],
            "shape": list(fact.shape),
            "data_offsets": [position, end],
        }
        position = end
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)))
        stream.write(header)
        for fact in facts:
            written = sum(stream.write(chunk) for chunk in chunks(fact))
            if written != tensor_bytes(fact):
                msg = f"{fact.name}: {written} bytes for {tensor_bytes(fact)}"
                raise ValueError(msg)


def plan_shards(
    facts: Sequence[TensorFact], *, shard_bytes: int = SHARD_BYTES
) -> Iterator[tuple[str, tuple[TensorFact, ...]]]:
    """Split tensors over files of at most `shard_bytes`, keeping their order."""
    groups: list[list[TensorFact]] = [[]]
    filled = 0
    for fact in facts:
        size = tensor_bytes(fact)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(fact)
        filled += size
    if len(groups) == 1:
        yield "model.safetensors", tuple(groups[0])
        return
    for index, group in enumerate(groups, 1):
        yield f"model-{index:05d}-of-{len(groups):05d}.safetensors", tuple(group)


def write_index(out: Path, places: Sequence[tuple[str, Sequence[TensorFact]]]) -> None:
    """Write the index of a model of several files."""
    total = sum(tensor_bytes(fact) for _, facts in places for fact in facts)
    weight_map = {fact.name: name for name, facts in places for fact in facts}
    document = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    (out / INDEX).write_text(text + "\n", encoding="utf-8")
