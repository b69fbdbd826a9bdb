"""Bytes of a log from a file, standard input or S3, unpacked on the way."""

from __future__ import annotations

import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lmi_build.errors import RemoteFailed, SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lmi_build.values.settings import Settings

BLOCK_BYTES = 1 << 20
# A line this long is no line of a request log.
_MOST_LINE_BYTES = 64 << 20
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib's number for a gzip header
_BOM = b"\xef\xbb\xbf"


@contextmanager
def open_log(source: str, settings: Settings) -> Iterator[Iterator[bytes]]:
    """
    The bytes of a log, unpacked, in blocks of no particular size.

    Args:
        source: A path, `-` for standard input, or `s3://bucket/key`.
        settings: Credentials and endpoint of S3.

    Raises:
        SourceInvalid: `traffic.unreadable`, and later `traffic.broken-gzip`.
        RemoteFailed: S3 refused or vanished.
    """
    if source.startswith("s3://"):
        yield unpacked(_s3_blocks(source, settings), source)
    elif source == "-":
        yield unpacked(_blocks(sys.stdin.buffer), "standard input")
    else:
        with _opened(Path(source)) as file:
            yield unpacked(_blocks(file), source)


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


def _s3_blocks(source: str, settings: Settings) -> Iterator[bytes]:
    from lmi_build.sources.download import Dropped
    from lmi_build.sources.s3 import split_url
    from lmi_build.sources.s3_client import S3Client

    if settings.offline:
        raise RemoteFailed(
            f"`{source}` needs the network",
            code="traffic.offline",
            hints=("leave out `--offline`, or copy the log here",),
        )
    bucket, key = split_url(source)
    client = S3Client(bucket, settings=settings)
    at = 0
    try:
        size, etag, _ = client.head(key)
    except Dropped as error:
        raise _dropped(source, at, error) from error
    # A dropped connection goes on where it stopped, on the same version.
    stuck = 0
    while at < size:
        before = at
        try:
            start, chunks = client.open(key, offset=at, count=None, etag=etag)
            for chunk in chunks:
                fresh = chunk[max(0, at - start) :]
                start += len(chunk)
                at += len(fresh)
                if fresh:
                    yield fresh
        except Dropped as error:
            stuck = stuck + 1 if at == before else 0
            if stuck == _MOST_STUCK:
                raise _dropped(source, at, error) from error


_MOST_STUCK = 3


def _dropped(source: str, at: int, error: Exception) -> RemoteFailed:
    return RemoteFailed(
        f"the connection for `{source}` dropped {_MOST_STUCK} times at byte {at:,}:"
        f" {error}",
        code="traffic.dropped",
        hints=("try again; or copy the log here with `aws s3 cp`",),
    )


def unpacked(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """
    The blocks, of gzip unpacked, without a byte order mark.

    Raises:
        SourceInvalid: `traffic.broken-gzip`.
    """
    blocks = iter(blocks)
    head = b""
    for block in blocks:
        head += block
        if len(head) >= len(_BOM):
            break
    plain = _chain(head, blocks)
    if head.startswith(_GZIP):
        plain = _gunzip(plain, name)
    first = True
    for block in plain:
        yield block.removeprefix(_BOM) if first else block
        first = False


def _chain(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from blocks


def _gunzip(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
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
