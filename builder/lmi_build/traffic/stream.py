"""Bytes of a log from a file, standard input or S3, unpacked on the way."""

from __future__ import annotations

import io
import sys
import zlib
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lmi_build.errors import SourceInvalid
from lmi_build.traffic.s3_log import S3Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lmi_build.values.settings import Settings

BLOCK_BYTES = 1 << 20
# A line this long is no line of a request log.
_MOST_LINE_BYTES = 64 << 20
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib's number for a gzip header
# Enough to tell the forms apart.
_HEAD_BYTES = 4
_BOM = b"\xef\xbb\xbf"


class Log:
    """
    An open log.

    Args:
        name: What messages call it.
        blocks: Its bytes as they lie there.
        whole: Opens it once more for reading at any place; None for a pipe.
    """

    def __init__(
        self,
        name: str,
        blocks: Iterable[bytes],
        whole: Callable[[], Any] | None = None,
    ) -> None:
        self._name = name
        self._blocks = iter(blocks)
        self._whole = whole
        self.head = b""
        while len(self.head) < _HEAD_BYTES and (block := next(self._blocks, b"")):
            self.head += block

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, unpacked, in blocks of no particular size."""
        return unpacked(chain((self.head,), self._blocks), self._name)

    def seekable(self) -> Any:
        """
        It as a file that can be read at any place.

        Raises:
            SourceInvalid: `traffic.not-seekable`: it comes through a pipe.
        """
        if self._whole is None:
            raise SourceInvalid(
                f"{self._name} is Parquet, which cannot be read through a pipe",
                code="traffic.not-seekable",
                hints=("name the file instead of `-`",),
            )
        return self._whole()


@contextmanager
def open_log(source: str, settings: Settings) -> Iterator[Log]:
    """
    A log that can be read once.

    Args:
        source: A path, `-` for standard input, or `s3://bucket/key`.
        settings: Credentials and endpoint of S3.

    Raises:
        SourceInvalid: `traffic.unreadable`, and later `traffic.broken-gzip`.
        RemoteFailed: S3 refused or vanished.
    """
    if source.startswith("s3://"):
        bucket = S3Log(source, settings)
        yield Log(source, bucket.blocks(), lambda: io.BufferedReader(bucket))
    elif source == "-":
        yield Log("standard input", _blocks(sys.stdin.buffer))
    else:
        with _opened(Path(source)) as file:
            yield Log(source, _blocks(file), lambda: Path(source).open("rb"))  # noqa: SIM115 - pyarrow closes it


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        if path.is_dir():
            raise SourceInvalid(
                f"`{path}` is a folder, not a log",
                code="traffic.unreadable",
                hints=(
                    f"name one file, or send all: `cat {path}/* | lmi-build bounds -`",
                ),
            )
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise SourceInvalid(
            f"`{path}` cannot be read: {error.strerror}",
            code="traffic.unreadable",
            hints=("check the path and its permissions",),
        ) from error


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def unpacked(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """
    The blocks, of gzip unpacked, without a byte order mark.

    Raises:
        SourceInvalid: `traffic.broken-gzip`.
    """
    blocks = iter(blocks)
    head = b""
    while len(head) < len(_BOM) and (block := next(blocks, b"")):
        head += block
    plain: Iterable[bytes] = chain((head,), blocks)
    if head.startswith(_GZIP):
        plain = _gunzip(plain, name)
    plain = iter(plain)
    head = b""
    while len(head) < len(_BOM) and (block := next(plain, b"")):
        head += block
    yield head.removeprefix(_BOM)
    yield from plain


def _gunzip(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Unpack one or more members; at most a block at a time is held."""
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    packed = out = 0
    for block in blocks:
        packed += len(block)
        rest = block
        while rest:
            if unpacker.eof:
                # Another member, or the zeros that tape programs fill up with.
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                unpacker = zlib.decompressobj(_GZIP_WINDOW)
            try:
                data = unpacker.decompress(rest, BLOCK_BYTES)
            except zlib.error as error:
                raise _broken(name, packed, out, str(error)) from error
            out += len(data)
            if data:
                yield data
            rest = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    if not unpacker.eof:
        raise _broken(name, packed, out, "it ends in the middle")


def _broken(name: str, packed: int, out: int, why: str) -> SourceInvalid:
    return SourceInvalid(
        f"the gzip data of `{name}` is broken within its first {packed:,} bytes,"
        f" after {out:,} unpacked bytes: {why}",
        code="traffic.broken-gzip",
        hints=(
            "copy it again and compare sizes",
            "to count what unpacks: `gzip -dc LOG | lmi-build bounds -`",
        ),
    )


def whole_lines(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """
    The same bytes, cut at ends of lines; the last line gets an end if it has none.

    Raises:
        SourceInvalid: `traffic.not-a-log`: a line without end.
    """
    carry: list[bytes] = []
    held = 0
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join((*carry, block[:cut]))
            carry, held = [], 0
        if cut < len(block):
            carry.append(block[cut:])
            held += len(block) - cut
        if held > _MOST_LINE_BYTES:
            raise SourceInvalid(
                f"`{name}` has a line of more than {_MOST_LINE_BYTES >> 20} MiB",
                code="traffic.not-a-log",
                hints=("a log has one request in each line: JSONL or CSV",),
            )
    if carry:
        yield b"".join((*carry, b"\n"))
