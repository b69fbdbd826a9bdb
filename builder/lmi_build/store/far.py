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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from lmi_build.errors import RemoteFailed
from lmi_build.store import files
from lmi_build.store.record import hex_of, parse_record, result_of
from lmi_build.values.manifest import FileEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from lmi_build.values.result import Entry, StageResult

_T = TypeVar("_T")
_R = TypeVar("_R")
# What a blob is fetched into before its digest is known to be right.
_FETCH_ATTEMPTS = 2


class SmallObject(Protocol):
    """A small object as it was read."""

    @property
    def data(self) -> bytes:
        """Its bytes."""

    @property
    def tag(self) -> str:
        """What a conditional write compares."""

    @property
    def age_seconds(self) -> float:
        """Since it was written, by the remote's own clock."""


class Remote(Protocol):
    """
    What a shared store needs of a bucket; keys are relative to its prefix.

    Every method raises `RemoteFailed` when the remote refuses or vanishes.
    """

    num_files_at_once: int

    def uri(self, key: str) -> str:
        """The key as the user would write it."""

    def holds(self, key: str, entry: FileEntry) -> bool:
        """Whether the object is there and recorded to be exactly this content."""

    def send(
        self, source: Path, key: str, entry: FileEntry, sent: Callable[[int], None]
    ) -> None:
        """Store a file; one that came first with this content stays."""

    def stop(self) -> None:
        """Make every `send` in progress end soon."""

    def go_on(self) -> None:
        """Allow `send` again."""

    def read(self, key: str) -> SmallObject | None:
        """A small object, or None."""

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """An object's bytes; a broken connection is taken up where it broke."""

    def put(self, key: str, data: bytes, *, tag: str = "") -> str | None:
        """
        Write a new small object, or overwrite one that still has this tag.

        Returns:
            The new tag, or None, and nothing written, when somebody came between.
        """

    def listing(self, prefix: str) -> Mapping[str, int]:
        """Every key below a prefix, relative to it, with its length in bytes."""

    def remove(self, key: str) -> None:
        """Delete an object; that there is none is as good."""

    def close(self) -> None:
        """Give connections back."""


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

    def fetch(self, digest: str, dest: Path, got: Callable[[int], None]) -> None:
        """Bring a content to its place in the local store; see `download`."""
        with self.download(blob_key(digest), digest, dest, got) as partial:
            files.make_blob(partial, dest)

    @contextmanager
    def download(
        self, key: str, digest: str, dest: Path, got: Callable[[int], None]
    ) -> Iterator[Path]:
        """
        Bring an object into a synced file beside `dest`, for the body to rename.

        Args:
            key: Where it lies.
            digest: Its content, which every byte is held against.
            dest: Where it shall be; nothing is there before the body renames it.
            got: Told of bytes as they come.

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
                    found = _pour(self.remote.stream(key), stream, got)
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


def _pour(chunks: Iterator[bytes], stream: FileIO, got: Callable[[int], None]) -> str:
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
