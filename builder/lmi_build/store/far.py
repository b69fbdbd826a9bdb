"""
A shared store: the layout of the local one below a prefix of a bucket.

```
<prefix>/
  blobs/ab/<64 hex>          files by content
  actions/ab/<64 hex>.json   records by key, the same bytes as in a local store
  state/<64 hex>/...         half-done work of a key
  leases/<64 hex>.json       who builds a key just now
```

Every write is conditional and carries a checksum; blobs go first, the record last. A
blob that is there is never sent again.

| found                               | meaning                    | action           |
| ----------------------------------- | -------------------------- | ---------------- |
| blob without record                 | killed before the record   | used again       |
| unfinished multipart upload         | killed within a blob       | gone on with     |
| record whose blobs are all there    | a result                   | a hit            |
| record with a missing or short blob | somebody deleted objects   | a miss, replaced |
| record that does not prove itself   | damage, or another version | a miss, replaced |
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

from lmi_build.errors import RemoteFailed
from lmi_build.store import files
from lmi_build.store.record import hex_of, parse_record, result_of
from lmi_build.units import MiB
from lmi_build.values.manifest import FileEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lmi_build.store.bucket import Remote
    from lmi_build.values.result import Entry, StageResult

    Got: TypeAlias = Callable[[int], None]

_T = TypeVar("_T")
_R = TypeVar("_R")
# One connection to S3 gives less than a disk takes; above this, several share a file.
_LARGE_BYTES = 32 * MiB
_PIECE_BYTES = 8 * MiB
# What a blob is fetched into before its digest is known to be right.
_FETCH_ATTEMPTS = 2


def blob_key(digest: str) -> str:
    """Where a content lies."""
    name = hex_of(digest)
    return f"blobs/{name[:2]}/{name}"


def record_key(key: str) -> str:
    """Where the record of a key lies."""
    name = hex_of(key)
    return f"actions/{name[:2]}/{name}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """
    What the shared store holds for a key.

    Args:
        result: A whole result, or None.
        data: The record's bytes where there is a result.
        cause: Why there is no result.
        tag: Of a record that cannot be used and may be replaced.
    """

    result: StageResult | None = None
    data: bytes = b""
    cause: str = ""
    tag: str = ""


class FarStore:
    """
    The shared store below one prefix.

    Args:
        remote: The bucket.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        # Contents seen there by this process: asked once, not for each stage.
        self._seen: set[str] = set()

    def find(self, key: str, here: Callable[[Entry], bool]) -> Found:
        """
        The result of a key, if its record proves itself and every file is there.

        Args:
            key: Name of the work.
            here: Whether an entry need not be asked for, as it is on this machine.

        Raises:
            RemoteFailed: The store cannot be asked.
        """
        stored = self.remote.read(record_key(key))
        if stored is None:
            return Found(cause="the shared store has no record of it")
        document, fault = parse_record(key, stored.data)
        if document is None:
            cause = f"its record in the shared store is damaged: {fault}"
            return Found(cause=cause, tag=stored.tag)
        result = result_of(document)
        absent = self.absent([e for e in result.entries if not here(e)])
        if absent:
            names = ", ".join(entry.path for entry in absent[:3])
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""  # noqa: PLR2004
            cause = f"files of its record are gone from the shared store: {names}{more}"
            return Found(cause=cause, tag=stored.tag)
        return Found(result=result, data=stored.data, tag=stored.tag)

    def absent(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those entries whose content the shared store does not hold."""
        asked = {e.digest: e for e in entries if e.digest not in self._seen}
        found = self.each(self._holds, asked.values())
        return [entry for entry, held in found if not held]

    def _holds(self, entry: Entry) -> bool:
        held = self.remote.holds(blob_key(entry.digest), _file_entry(entry))
        if held:
            self._seen.add(entry.digest)
        return held

    def send(self, entries: Iterable[Entry], path: Callable[[str], Path]) -> int:
        """
        Store the contents that are not there yet.

        Args:
            entries: Files.
            path: Digest to the file on this machine.

        Returns:
            Bytes sent.

        Raises:
            RemoteFailed: The store refuses; what has arrived is kept there.
        """
        sent: list[int] = []

        def send(entry: Entry) -> None:
            key = blob_key(entry.digest)
            self.remote.send(path(entry.digest), key, _file_entry(entry), sent.append)
            self._seen.add(entry.digest)

        self.each(send, self.absent(entries))
        return sum(sent)

    def put_record(self, key: str, data: bytes, *, tag: str = "") -> bool:
        """
        Make a result known, or replace a record that cannot be used.

        Returns:
            False when another record came first.
        """
        return self.remote.put(record_key(key), data, tag=tag) is not None

    def fetch(
        self, entries: Iterable[Entry], path: Callable[[str], Path], got: Got
    ) -> None:
        """
        Bring contents to their places in the local store.

        Large ones come one after another, each over all connections at once; the
        others side by side. Memory is bounded by the pieces in flight.

        Args:
            entries: Files that are not here.
            path: Digest to the place of the content.
            got: Told of bytes as they come, from several threads.

        Raises:
            RemoteFailed: One is gone, or is not what its name says, twice.
            OSError: The disk refused.
        """

        def fetch(entry: Entry) -> None:
            key, dest = blob_key(entry.digest), path(entry.digest)
            with self.download(key, entry.digest, dest, got, entry.size) as partial:
                files.make_blob(partial, dest)

        wanted = sorted(entries, key=lambda entry: -entry.size)
        for entry in wanted:
            if entry.size > _LARGE_BYTES:
                fetch(entry)
        self.each(fetch, [entry for entry in wanted if entry.size <= _LARGE_BYTES])

    def _chunks(self, key: str, num_bytes: int) -> Iterator[bytes]:
        """An object in order; a large one by many requests that overlap."""
        if num_bytes <= _LARGE_BYTES:
            yield from self.remote.stream(key)
            return

        def piece(start: int) -> bytes:
            count = min(_PIECE_BYTES, num_bytes - start)
            return b"".join(self.remote.stream(key, start=start, count=count))

        starts = iter(range(0, num_bytes, _PIECE_BYTES))
        width = self.remote.num_files_at_once
        pool = ThreadPoolExecutor(width, thread_name_prefix="pieces")
        try:
            coming = deque(pool.submit(piece, at) for at in islice(starts, width))
            while coming:
                yield coming.popleft().result()
                coming.extend(pool.submit(piece, at) for at in islice(starts, 1))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def download(
        self, key: str, digest: str, dest: Path, got: Got, num_bytes: int = 0
    ) -> Iterator[Path]:
        """
        Bring an object into a synced file beside `dest`, for the body to rename.

        Args:
            key: Where it lies.
            digest: Its content, which every byte is held against.
            dest: Where it shall be; nothing is there before the body renames it.
            got: Told of bytes as they come.
            num_bytes: Its length, where it is known to be large.

        Raises:
            RemoteFailed: It is not what its name says, twice.
            OSError: The disk refused.
        """
        dest.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{dest.name}.", dir=dest.parent)
        partial = Path(name)
        try:
            with FileIO(descriptor, "wb") as stream:
                found = ""
                for _ in range(_FETCH_ATTEMPTS):
                    stream.seek(0)
                    stream.truncate()
                    found = _pour(self._chunks(key, num_bytes), stream, got)
                    if found == hex_of(digest):
                        break
                else:
                    _refuse_damaged(self.remote.uri(key), found)
                os.fsync(stream.fileno())
            yield partial
        finally:
            with suppress(OSError):
                partial.unlink()

    def each(
        self, action: Callable[[_T], _R], items: Iterable[_T]
    ) -> list[tuple[_T, _R]]:
        """Do something for many items at once; the first failure ends the rest."""
        wanted = list(items)
        if len(wanted) <= 1:
            return [(item, action(item)) for item in wanted]
        pool = ThreadPoolExecutor(
            self.remote.num_files_at_once, thread_name_prefix="store"
        )
        futures = [pool.submit(action, item) for item in wanted]
        try:
            return [
                (item, future.result())
                for item, future in zip(wanted, futures, strict=True)
            ]
        except BaseException:
            self.remote.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self.remote.go_on()


def _pour(chunks: Iterator[bytes], stream: FileIO, got: Got) -> str:
    """Write an answer, and name it while it is written."""
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[stream.write(view) :]
        got(len(chunk))
    return sha.hexdigest()


def _refuse_damaged(uri: str, found: str) -> NoReturn:
    raise RemoteFailed(
        f"{uri} arrived as sha256:{found}, twice",
        code="store.remote-damaged",
        hints=(
            "run `lmi-build cache verify --remote --repair`, then build again",
            "if nothing there is found damaged, something on the way changes bytes",
        ),
    )


def _file_entry(entry: Entry) -> FileEntry:
    return FileEntry(path=hex_of(entry.digest), size=entry.size, digest=entry.digest)
