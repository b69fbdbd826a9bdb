"""A bucket in memory, with the laws of S3 and a fuse that burns at a chosen write."""

from __future__ import annotations

import hashlib
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build.errors import RemoteFailed
from lmi_build.remote.place import Stored, content_differs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lmi_build.values.manifest import FileEntry

_TAGS = itertools.count()


@dataclass
class Bucket:
    """
    What several hosts share.

    Args:
        objects: Key to bytes, tag, the digest that it was stored with, and when.
        fuse: Writes until one fails, as if the host was killed there; None for never.
    """

    objects: dict[str, tuple[bytes, str, str, float]] = field(default_factory=dict)
    fuse: int | None = None

    def burn(self) -> None:
        """Count a write."""
        if self.fuse is None:
            return
        if self.fuse == 0:
            raise RemoteFailed("the fuse burnt", code="remote.unreachable")
        self.fuse -= 1

    def keep(self, key: str, data: bytes, digest: str) -> str:
        """Write an object."""
        tag = f'"{next(_TAGS)}"'
        self.objects[key] = (data, tag, digest, time.monotonic())
        return tag


class MemoryRemote:
    """One host's connection to a bucket in memory."""

    num_files_at_once = 1

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def uri(self, key: str) -> str:
        """A name for messages."""
        return f"memory:{key}"

    def holds(self, key: str, entry: FileEntry) -> bool:
        """Whether this content was stored under the key."""
        data, _, digest, _ = self.bucket.objects.get(key, (b"", "", "", 0.0))
        return digest == entry.digest and len(data) == entry.size

    def send(
        self, source: Path, key: str, entry: FileEntry, sent: Callable[[int], None]
    ) -> None:
        """Store a file whole."""
        self.bucket.burn()
        data = source.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            raise content_differs(source, found, entry)
        if not self.holds(key, entry):
            self.bucket.keep(key, data, entry.digest)
        sent(len(data))

    def stop(self) -> None:
        """Sends are over at once."""

    def go_on(self) -> None:
        """Sends may follow."""

    def read(self, key: str) -> Stored | None:
        """An object, its tag and its age."""
        if key not in self.bucket.objects:
            return None
        data, tag, _, written = self.bucket.objects[key]
        return Stored(data=data, tag=tag, age_seconds=time.monotonic() - written)

    def stream(
        self, key: str, *, start: int = 0, count: int | None = None
    ) -> Iterator[bytes]:
        """Its bytes."""
        if key not in self.bucket.objects:
            raise RemoteFailed(f"no {key}", code="remote.not-found")
        end = None if count is None else start + count
        yield self.bucket.objects[key][0][start:end]

    def put(self, key: str, data: bytes, *, tag: str = "") -> str | None:
        """A conditional write."""
        self.bucket.burn()
        there = self.bucket.objects.get(key)
        if (there[1] if there else "") != tag:
            return None
        return self.bucket.keep(key, data, "")

    def listing(self, prefix: str) -> Mapping[str, int]:
        """Keys and lengths."""
        return {
            key[len(prefix) :]: len(row[0])
            for key, row in self.bucket.objects.items()
            if key.startswith(prefix)
        }

    def remove(self, key: str) -> None:
        """A deletion."""
        self.bucket.burn()
        self.bucket.objects.pop(key, None)

    def close(self) -> None:
        """Nothing is held open."""
