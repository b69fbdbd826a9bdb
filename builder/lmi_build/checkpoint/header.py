"""
Safetensors headers, read and checked with the standard library alone.

A file is eight bytes (little-endian header length), a JSON object, and data. Each
entry names a dtype, a shape and a half-open range of data bytes. The format promises
that the ranges cover the data exactly once; everything here holds it to that, so that
a truncated or doctored file is found before a tensor of it is used.

Source: safetensors 0.8, `safetensors/src/tensor.rs`, `SafeTensors::read_metadata`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LENGTH_BYTES = 8
# The reference implementation refuses larger headers; 100 MB is some million tensors.
MAX_HEADER_BYTES = 100_000_000

# Header spelling to the spelling of `values.model.DTYPE_BITS`, and bytes per element.
DTYPES: Mapping[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
SPELLINGS: Mapping[str, str] = {ours: theirs for theirs, (ours, _) in DTYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """
    One tensor of a file.

    Args:
        name: Its name.
        dtype: As `values.model.DTYPE_BITS` spells it.
        shape: Row-major.
        begin: First byte, counted from the start of the file.
        end: One past the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Length of the data."""
        return self.end - self.begin


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """
    The header of one file.

    Args:
        tensors: Entries by name, in the order of their data.
        metadata: The free-form strings under `__metadata__`.
        num_bytes: Header with its length prefix; data begin here.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    num_bytes: int


def read_header(path: Path) -> Header:
    """
    Read and check the header of a safetensors file.

    Args:
        path: The file.

    Raises:
        SourceInvalid: `checkpoint.unreadable`, or what `parse_header` raises.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            prefix = stream.read(LENGTH_BYTES)
            length = header_length(prefix, file_bytes=size, where=str(path))
            text = stream.read(length)
    except OSError as error:
        raise SourceInvalid(
            f"`{path}` cannot be read: {error.strerror or error}",
            code="checkpoint.unreadable",
            hints=("check that the file exists and that you may read it",),
        ) from error
    return parse_header(text, file_bytes=size, where=str(path))


def header_length(prefix: bytes, *, file_bytes: int, where: str) -> int:
    """
    Decode the eight bytes before a header.

    Args:
        prefix: The first eight bytes of the file, or all of a shorter one.
        file_bytes: Size of the whole file.
        where: Name of the file, for messages.

    Returns:
        Bytes of JSON that follow.

    Raises:
        SourceInvalid: `checkpoint.truncated` or `checkpoint.header-length`.
    """
    if len(prefix) < LENGTH_BYTES:
        raise _truncated(where, f"it has {file_bytes} bytes, a header needs 8")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES or length < len("{}"):
        raise SourceInvalid(
            f"`{where}` announces a header of {length} bytes, between 2 and "
            f"{MAX_HEADER_BYTES} are possible: it is not a safetensors file",
            code="checkpoint.header-length",
            hints=(f"fetch `{where}` again, or convert the model to safetensors",),
        )
    if LENGTH_BYTES + length > file_bytes:
        raise _truncated(
            where,
            f"its header needs {LENGTH_BYTES + length} bytes, it has {file_bytes}",
        )
    return length


def parse_header(text: bytes, *, file_bytes: int, where: str) -> Header:
    """
    Check a header against the size of its file.

    Args:
        text: The JSON bytes.
        file_bytes: Size of the whole file.
        where: Name of the file, for messages.

    Raises:
        SourceInvalid: `checkpoint.header`, `.duplicate`, `.dtype`, `.shape`,
            `.overlap` or `.truncated`.
    """
    document = _load_json(text, where)
    data_begin = LENGTH_BYTES + len(text)
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise _broken(where, "`__metadata__` is not a table of strings")
    entries = [
        _parse_entry(name, value, data_begin, where) for name, value in document.items()
    ]
    entries.sort(key=lambda entry: (entry.begin, entry.end, entry.name))
    _check_cover(entries, data_begin, file_bytes, where)
    return Header(
        tensors={entry.name: entry for entry in entries},
        metadata=metadata,
        num_bytes=data_begin,
    )


def _load_json(text: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise SourceInvalid(
                f"`{where}` names `{twice}` twice in its header",
                code="checkpoint.duplicate",
                hints=("write the checkpoint again with a current safetensors",),
            )
        return table

    try:
        document = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _broken(where, f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise _broken(where, "it is not a JSON object")
    return document


def _parse_entry(name: str, value: Any, data_begin: int, where: str) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(where, f"`{name}` lacks dtype, shape or data_offsets")
    if value["dtype"] not in DTYPES:
        raise SourceInvalid(
            f"`{where}`: `{name}` has the unknown dtype `{value['dtype']}`",
            code="checkpoint.dtype",
            hints=(f"convert the tensor to one of {', '.join(DTYPES)}",),
        )
    shape, offsets = value["shape"], value["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != len("be"):
        raise _broken(where, f"`{name}` has a shape or offsets that are not sizes")
    dtype, element_bytes = DTYPES[value["dtype"]]
    need = element_bytes
    for size in shape:
        need *= size
    if offsets[1] - offsets[0] != need:
        raise SourceInvalid(
            f"`{where}`: `{name}` has {offsets[1] - offsets[0]} bytes, its shape "
            f"{list(shape)} of {dtype} needs {need}",
            code="checkpoint.shape",
            hints=(f"fetch `{where}` again; its header contradicts itself",),
        )
    return TensorEntry(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        begin=data_begin + offsets[0],
        end=data_begin + offsets[1],
    )


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and value >= 0 for value in values
    )


def _check_cover(
    entries: Sequence[TensorEntry], data_begin: int, file_bytes: int, where: str
) -> None:
    reached = data_begin
    for entry in entries:
        if entry.begin != reached:
            fault = (
                "overlaps the one before" if entry.begin < reached else "leaves a gap"
            )
            raise SourceInvalid(
                f"`{where}`: `{entry.name}` {fault}: it begins at byte {entry.begin}, "
                f"expected {reached}",
                code="checkpoint.overlap",
                hints=(f"fetch `{where}` again; its header contradicts itself",),
            )
        reached = entry.end
    if reached > file_bytes:
        raise _truncated(
            where,
            f"its tensors need {reached} bytes ({format_bytes(reached)}), "
            f"it has {file_bytes}",
        )
    if reached < file_bytes:
        raise SourceInvalid(
            f"`{where}` has {file_bytes - reached} bytes after its last tensor",
            code="checkpoint.overlap",
            hints=(f"fetch `{where}` again; something was appended to it",),
        )


def _truncated(where: str, detail: str) -> SourceInvalid:
    return SourceInvalid(
        f"`{where}` is truncated: {detail}",
        code="checkpoint.truncated",
        hints=(f"fetch `{where}` again",),
    )


def _broken(where: str, detail: str) -> SourceInvalid:
    return SourceInvalid(
        f"`{where}` has a broken header: {detail}",
        code="checkpoint.header",
        hints=(f"fetch `{where}` again; it is not a whole safetensors file",),
    )
