"""Read a safetensors header from a file that is only readable in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lmi_build.checkpoint.header import LENGTH_BYTES, header_length, parse_header

if TYPE_CHECKING:
    from lmi_build.checkpoint.header import Header

# One read that holds the header of all but the largest files.
_FIRST_READ_BYTES = 256 << 10

ReadAt = Callable[[int, int], bytes]


def read_header_at(read_at: ReadAt, *, size: int, file: str) -> Header:
    """
    Header of a file.

    Args:
        read_at: `read_at(offset, count)` gives up to `count` bytes.
        size: Bytes of the whole file.
        file: Its name relative to the model.

    Raises:
        SourceInvalid: `checkpoint.*`, with the numbers.
    """
    head = read_at(0, min(size, _FIRST_READ_BYTES))
    length = header_length(head[:LENGTH_BYTES], file_bytes=size, where=file)
    end = LENGTH_BYTES + length
    if len(head) < end:
        head += read_at(len(head), end - len(head))
    return parse_header(head[LENGTH_BYTES:end], file_bytes=size, where=file)
