"""
Read the header of a GGUF file: metadata and where each tensor lies.

Layout (ggml's `docs/gguf.md`, version 3, little endian): magic, version, number of
tensors, number of metadata pairs; the pairs; one record per tensor (name, dimensions
fastest first, type, offset); padding; data. Every count and length is checked against
the file's size before it is used, so that no header makes us allocate or loop more
than the file has bytes.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from lmi_build.errors import SourceInvalid

# (name, elements of a block, bytes of a block), by ggml's type number.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
}

# Metadata value types: struct code of the fixed-size ones.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 20
_MIN_PAIR_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8
# Metadata arrays up to this many elements are kept; longer ones (the vocabulary)
# are stepped over and read by the worker.
_SHORT_ARRAY = 1024
_FIRST_READ_BYTES = 4 << 20

ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """
    One tensor as the header describes it.

    Args:
        name: As in the file, such as `blk.0.attn_q.weight`.
        type_name: Such as `Q4_1`.
        shape: Row-major, as PyTorch has it (the file has it reversed).
        offset: First byte, from the start of the file.
        num_bytes: Length of its data.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """
    Everything before the data.

    Args:
        version: 2 or 3.
        metadata: Key to value; a long array is its `ArrayLength`.
        tensors: In file order.
    """

    version: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]


@dataclass(frozen=True, slots=True)
class ArrayLength:
    """Stands for an array that was stepped over."""

    length: int


class _Cursor:
    """Reads forward; keeps what it read so that short reads are few."""

    def __init__(self, read_at: ReadAt, size: int, name: str) -> None:
        self.size = size
        self.pos = 0
        self.name = name
        self.data = bytearray()
        self._read_at = read_at

    def fail(self, what: str, *, at: int | None = None) -> NoReturn:
        place = self.pos if at is None else at
        raise SourceInvalid(
            f"`{self.name}` is not a whole GGUF file: {what} at byte {place:,}"
            f" of {self.size:,}",
            code="source.bad-gguf",
            hints=(
                (
                    "fetch the file again and compare its size and SHA-256 with the"
                    " publisher's"
                ),
            ),
        )

    def need(self, count: int, what: str) -> None:
        """Have `count` more bytes in memory, or say that the file has no such."""
        end = self.pos + count
        if end > self.size:
            self.fail(
                f"{what} needs {count:,} bytes, {self.size - self.pos:,} are left"
            )
        while len(self.data) < end:
            start = len(self.data)
            want = max(_FIRST_READ_BYTES, start, end - start)
            chunk = self._read_at(start, min(want, self.size - start))
            if not chunk:
                self.fail("the file ended early", at=start)
            self.data += chunk

    def scalar(self, code: str, what: str) -> Any:
        count = struct.calcsize("<" + code)
        self.need(count, what)
        (value,) = struct.unpack_from("<" + code, self.data, self.pos)
        self.pos += count
        return value

    def text(self, what: str) -> str:
        count = self.scalar("Q", f"the length of {what}")
        self.need(count, what)
        raw = bytes(self.data[self.pos : self.pos + count])
        try:
            value = raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")
        self.pos += count
        return value


def read_gguf_header(
    read_at: ReadAt,
    *,
    size: int,
    name: str,
    keep: Collection[str] = (),
) -> GgufHeader:
    """
    Parse a header.

    Args:
        read_at: `read_at(offset, count)` gives up to `count` bytes.
        size: Bytes of the file.
        name: For messages.
        keep: Metadata keys whose arrays are wanted, however long.

    Raises:
        SourceInvalid: `source.bad-gguf`, with the offset.
    """
    cursor = _Cursor(read_at, size, name)
    num_tensors, num_pairs, version = _preamble(cursor)
    metadata: dict[str, Any] = {}
    for index in range(num_pairs):
        key = cursor.text(f"the name of metadata pair {index} of {num_pairs}")
        if key in metadata:
            cursor.fail(f"metadata key {key!r} stands twice")
        metadata[key] = _value(cursor, key, keep=key in keep)
    alignment = metadata.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or not 1 <= alignment <= _MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        cursor.fail(f"general.alignment is {alignment!r}")
    rows = [_tensor_row(cursor, index, num_tensors) for index in range(num_tensors)]
    start = -(-cursor.pos // alignment) * alignment
    tensors = _place_tensors(cursor, rows, start=start, alignment=alignment)
    return GgufHeader(version=version, metadata=metadata, tensors=tensors)


def _preamble(cursor: _Cursor) -> tuple[int, int, int]:
    cursor.need(4, "the magic")
    magic = bytes(cursor.data[:4])
    if magic != b"GGUF":
        cursor.fail(f"the magic is {magic!r}, not b'GGUF',")
    cursor.pos = 4
    version = cursor.scalar("I", "the version")
    if version not in _VERSIONS:
        cursor.fail(f"version {version} is not 2 or 3 in little-endian order", at=4)
    num_tensors = cursor.scalar("Q", "the number of tensors")
    num_pairs = cursor.scalar("Q", "the number of metadata pairs")
    left = cursor.size - cursor.pos
    if num_tensors * _MIN_TENSOR_BYTES + num_pairs * _MIN_PAIR_BYTES > left:
        cursor.fail(
            f"{num_tensors:,} tensors and {num_pairs:,} metadata pairs are announced,"
            f" but {left:,} bytes are left",
            at=8,
        )
    return num_tensors, num_pairs, version


def _value(cursor: _Cursor, key: str, *, keep: bool) -> Any:
    what = f"the value of {key!r}"
    kind = cursor.scalar("I", f"the type of {key!r}")
    if kind in _SCALARS:
        return cursor.scalar(_SCALARS[kind], what)
    if kind == _STRING:
        return cursor.text(what)
    if kind != _ARRAY:
        cursor.fail(f"the type of {key!r} is {kind}, which GGUF does not know", at=None)
    item = cursor.scalar("I", f"the element type of {key!r}")
    length = cursor.scalar("Q", f"the length of {key!r}")
    keep = keep or length <= _SHORT_ARRAY
    if item in _SCALARS:
        return _fixed_array(cursor, _SCALARS[item], length, what, keep=keep)
    if item == _STRING:
        return _text_array(cursor, length, what, keep=keep)
    return cursor.fail(f"{key!r} is an array of type {item}, which is not read here")


def _fixed_array(
    cursor: _Cursor, code: str, length: int, what: str, *, keep: bool
) -> Any:
    count = length * struct.calcsize("<" + code)
    cursor.need(count, what)
    start = cursor.pos
    cursor.pos += count
    if not keep:
        return ArrayLength(length)
    return list(struct.unpack_from(f"<{length}{code}", cursor.data, start))


def _text_array(cursor: _Cursor, length: int, what: str, *, keep: bool) -> Any:
    if length * 8 > cursor.size - cursor.pos:
        cursor.fail(f"{what} announces {length:,} strings")
    if keep:
        return [cursor.text(what) for _ in range(length)]
    # A vocabulary has 10^5 strings: step over them without making any.
    unpack = struct.Struct("<Q").unpack_from
    pos, have = cursor.pos, len(cursor.data)
    for _ in range(length):
        if pos + 8 > have:
            cursor.pos = pos
            cursor.need(8, f"the length of a string of {what}")
            have = len(cursor.data)
        pos += 8 + unpack(cursor.data, pos)[0]
        if pos > cursor.size:
            cursor.fail(f"a string of {what} ends at byte {pos:,}")
    cursor.pos = pos
    return ArrayLength(length)


def _tensor_row(
    cursor: _Cursor, index: int, num_tensors: int
) -> tuple[str, tuple[int, ...], int, int]:
    what = f"tensor {index} of {num_tensors}"
    name = cursor.text(f"the name of {what}")
    num_dimensions = cursor.scalar("I", f"the dimensions of {what}")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        cursor.fail(f"{name!r} has {num_dimensions} dimensions")
    sizes = [cursor.scalar("Q", f"a size of {what}") for _ in range(num_dimensions)]
    kind = cursor.scalar("I", f"the type of {what}")
    if kind not in TENSOR_TYPES:
        cursor.fail(f"{name!r} has type {kind}, which is not read here")
    offset = cursor.scalar("Q", f"the offset of {what}")
    return name, tuple(reversed(sizes)), kind, offset


def _place_tensors(
    cursor: _Cursor,
    rows: list[tuple[str, tuple[int, ...], int, int]],
    *,
    start: int,
    alignment: int,
) -> tuple[GgufTensor, ...]:
    tensors = []
    seen: set[str] = set()
    for name, shape, kind, offset in rows:
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        count = 1
        for size in shape:
            count *= size
        if name in seen:
            cursor.fail(f"tensor {name!r} stands twice")
        seen.add(name)
        if count == 0 or shape[-1] % block:
            cursor.fail(f"{name!r} of shape {shape} does not fill {type_name} blocks")
        num_bytes = count // block * block_bytes
        first = start + offset
        if offset % alignment:
            cursor.fail(f"{name!r} is not aligned to {alignment} bytes", at=first)
        if first + num_bytes > cursor.size:
            cursor.fail(
                f"{name!r} needs bytes {first:,} to {first + num_bytes:,}, but the file"
                " ends before",
                at=min(first, cursor.size),
            )
        tensors.append(
            GgufTensor(
                name=name,
                type_name=type_name,
                shape=shape,
                offset=first,
                num_bytes=num_bytes,
            )
        )
    _check_disjoint(cursor, tensors)
    return tuple(tensors)


def _check_disjoint(cursor: _Cursor, tensors: list[GgufTensor]) -> None:
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    for left, right in itertools.pairwise(ordered):
        if left.offset + left.num_bytes > right.offset:
            cursor.fail(f"{left.name!r} and {right.name!r} overlap", at=right.offset)
