"""
Bring files from a remote into a folder, going on where a killed attempt stopped.

State of one file on disk, and what is done about it:

| found | done |
| --- | --- |
| nothing | fetch from byte 0 |
| `NAME.part`, shorter than planned | hash it, fetch the rest with a range request |
| `NAME.part`, longer than planned | remove it, fetch from byte 0 |
| `NAME` | hash it; keep it when it is right, else remove it and start again |

A part whose final hash is wrong is fetched once more from byte 0: a crash may have
left a hole in it.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from lmi_build.digest import CHUNK_BYTES
from lmi_build.errors import RemoteFailed
from lmi_build.sources.copy_files import Hasher, safe_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lmi_build.values.model import FileFact

_LOG = logging.getLogger(__name__)

# Attempts in a row without a single byte; any byte starts the count again.
_MAX_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.25
_MAX_WAIT_SECONDS = 8.0
# A hub or bucket gives one connection less than the link; four are polite.
_CONNECTIONS = 4


class Dropped(Exception):
    """The connection broke or the server was busy; worth another try."""


class Remote(Protocol):
    """Somewhere files can be read from, in part."""

    @property
    def source(self) -> str:
        """How to call it in messages."""

    def stream(self, file: FileFact, offset: int) -> tuple[int, Iterator[bytes]]:
        """
        A file's bytes from `offset` on.

        Returns:
            Where the bytes really start (0 when the server ignores ranges), and them.

        Raises:
            Dropped: Worth another try, also while iterating.
            RemoteFailed: Not worth one.
        """


class _Stopped(Exception):
    """Another file failed for good."""


def download_all(
    remote: Remote,
    files: Sequence[FileFact],
    folder: Path,
    *,
    on_bytes: Callable[[int], None],
    first_wait_seconds: float = _FIRST_WAIT_SECONDS,
) -> None:
    """
    Fetch every file into `folder`, large ones first.

    Args:
        remote: Where from.
        files: What, with sizes and digests.
        folder: Survives a killed attempt.
        on_bytes: Told of bytes, from several threads; negative when a part is dropped.
        first_wait_seconds: Pause before the second attempt; it doubles each time.

    Raises:
        RemoteFailed: A file cannot be had, or is not what was planned.
        OSError: The disk refused.
    """
    stop = threading.Event()

    def count(num_bytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        on_bytes(num_bytes)

    def fetch(file: FileFact) -> None:
        try:
            _fetch_file(remote, file, folder, on_bytes=count, wait=first_wait_seconds)
        except BaseException:
            stop.set()
            raise

    ordered = sorted(files, key=lambda file: -file.size)
    with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="fetch") as pool:
        futures = [pool.submit(fetch, file) for file in ordered]
    errors = [error for future in futures if (error := future.exception())]
    for error in errors:
        if not isinstance(error, _Stopped):
            raise error


def _fetch_file(
    remote: Remote,
    file: FileFact,
    folder: Path,
    *,
    on_bytes: Callable[[int], None],
    wait: float,
) -> None:
    target = safe_child(folder, file.path)
    target.parent.mkdir(exist_ok=True)
    part = target.with_name(target.name + ".part")
    if target.is_file():
        if _hash_file(target, file, on_bytes).matches_size(file.size):
            return
        on_bytes(-target.stat().st_size)
        target.unlink()
    for is_last in (False, True):
        found = _fetch_part(remote, file, part, on_bytes=on_bytes, wait=wait)
        if found is None:
            part.replace(target)
            return
        on_bytes(-part.stat().st_size)
        part.unlink()
        if is_last:
            raise RemoteFailed(
                f"`{file.path}` from `{remote.source}` arrived as {found}, planned was"
                f" {file.digest}, twice",
                code="source.corrupt-download",
                hints=(
                    (
                        "plan again, in case the file was replaced; else something"
                        " between here and the server changes bytes"
                    ),
                ),
            )


class _Found:
    """A digest and a number of bytes."""

    def __init__(self, hasher: Hasher) -> None:
        self.hasher = hasher
        self.size = 0

    def add(self, data: bytes) -> None:
        self.hasher.update(data)
        self.size += len(data)

    def matches_size(self, size: int) -> bool:
        return self.size == size and self.hasher.matches


def _hash_file(path: Path, file: FileFact, on_bytes: Callable[[int], None]) -> _Found:
    found = _Found(Hasher(file.digest, file.size))
    if path.is_file():
        with path.open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                found.add(chunk)
                on_bytes(len(chunk))
    return found


def _fetch_part(
    remote: Remote,
    file: FileFact,
    part: Path,
    *,
    on_bytes: Callable[[int], None],
    wait: float,
) -> str | None:
    """Complete a part; returns None when it is right, else what it is instead."""
    if part.is_file() and part.stat().st_size > file.size:
        part.unlink()
    found = _hash_file(part, file, on_bytes)
    attempts = 0
    while found.size < file.size or not part.is_file():
        before = found.size
        try:
            found = _append(remote, file, part, found, on_bytes)
            reason = "the server ended the answer early"
        except Dropped as error:
            reason = str(error)
            found.size = part.stat().st_size if part.is_file() else 0
        if found.size == file.size:
            break
        attempts = 0 if found.size > before else attempts + 1
        if attempts >= _MAX_ATTEMPTS:
            raise RemoteFailed(
                f"`{file.path}` from `{remote.source}` stopped at byte"
                f" {found.size:,} of {file.size:,}: {reason}"
                f" ({_MAX_ATTEMPTS} attempts without progress)",
                code="source.unreachable",
                hints=("run the build again; it goes on from that byte",),
            )
        _LOG.info("%s: %s; trying again", file.path, reason)
        time.sleep(min(wait * 2**attempts, _MAX_WAIT_SECONDS))
    return None if found.matches_size(file.size) else found.hasher.value


def _append(
    remote: Remote,
    file: FileFact,
    part: Path,
    found: _Found,
    on_bytes: Callable[[int], None],
) -> _Found:
    if file.size == 0:
        part.touch()
        return found
    start, chunks = remote.stream(file, found.size)
    if start != found.size:
        on_bytes(-found.size)
        part.unlink(missing_ok=True)
        found = _Found(Hasher(file.digest, file.size))
    # Unbuffered, so that what is hashed and counted is on disk when a drop comes.
    with part.open("ab", buffering=0) as sink:
        for chunk in chunks:
            kept = chunk[: file.size - found.size]
            view = memoryview(kept)
            while view:
                view = view[sink.write(view) :]
            found.add(kept)
            on_bytes(len(kept))
            if len(kept) < len(chunk):
                break
    return found
