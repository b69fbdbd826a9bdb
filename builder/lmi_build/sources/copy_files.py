"""Copy files of a local model, checking each against the digest that was planned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from lmi_build.digest import CHUNK_BYTES
from lmi_build.errors import DoesNotFit, SourceInvalid, is_disk_full
from lmi_build.sources.local import unreadable
from lmi_build.store.files import clone

if TYPE_CHECKING:
    from io import BufferedWriter, FileIO
    from pathlib import Path

OnBytes = Callable[[int], None]


class Hasher:
    """
    Computes a digest of the kind that was planned.

    Args:
        digest: `sha256:...`, `git-sha1:...` (a blob's id), or `s3-etag:...`, which
            names a version and cannot be computed from bytes.
        size: Bytes of the whole file.
    """

    def __init__(self, digest: str, size: int) -> None:
        self._expected = digest
        self._kind = digest.partition(":")[0]
        if self._kind == "git-sha1":
            self._hash = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        else:
            self._hash = hashlib.sha256()

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._hash.update(data)

    @property
    def value(self) -> str:
        """The digest so far."""
        return f"{self._kind}:{self._hash.hexdigest()}"

    @property
    def matches(self) -> bool:
        """Whether the bytes are those that were planned, as far as can be told."""
        return self._kind == "s3-etag" or self.value == self._expected


def changed(name: str, *, expected: str, found: str) -> SourceInvalid:
    """The error for a file that is not what the plan was made of."""
    return SourceInvalid(
        f"`{name}` changed since the plan was made: planned {expected}, found {found}",
        code="source.changed",
        hints=("run the build again, so that it plans with the new content",),
    )


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn a full disk into the error that says so."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DoesNotFit(
            f"no space left while writing {what}",
            code="source.disk-full",
            hints=(
                (
                    "free some space (`lmi-build cache prune`) or set LMI_BUILD_CACHE"
                    " to a larger disk"
                ),
            ),
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failure to read `path` into the user's error; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno != EIO and error.filename != str(path):
            raise
        raise unreadable(path, error) from error


def _unwatched(count: int) -> None:
    del count


def hash_checked(path: Path, *, digest: str, size: int) -> None:
    """
    Check a file's content.

    Raises:
        SourceInvalid: `source.changed`.
        OSError: It cannot be read.
    """
    hasher = Hasher(digest, size)
    with path.open("rb", buffering=0) as stream:
        _pump(stream, hasher, on_bytes=_unwatched, sink=None)
    if not hasher.matches:
        raise changed(path.name, expected=digest, found=hasher.value)


def copy_checked(
    source: Path, target: Path, *, digest: str, size: int, on_bytes: OnBytes
) -> None:
    """
    Copy a file and check its content on the way.

    Blocks are shared where the file system can do that. They are never hard linked:
    a later edit of the user's file would reach into the store.

    Raises:
        SourceInvalid: `source.changed`.
        OSError: It cannot be read or written.
    """
    hasher = Hasher(digest, size)
    with source.open("rb", buffering=0) as stream, target.open("xb") as sink:
        shared = clone(stream.fileno(), sink.fileno())
        # A clone is hashed, not its source: what is checked is what is kept.
        if shared:
            with target.open("rb", buffering=0) as copy:
                _pump(copy, hasher, on_bytes, sink=None)
        else:
            _pump(stream, hasher, on_bytes, sink=sink)
    if not hasher.matches:
        raise changed(source.name, expected=digest, found=hasher.value)


def _pump(
    stream: FileIO,
    hasher: Hasher,
    on_bytes: OnBytes,
    *,
    sink: BufferedWriter | None,
) -> None:
    while chunk := stream.read(CHUNK_BYTES):
        hasher.update(chunk)
        if sink is not None:
            sink.write(chunk)
        on_bytes(len(chunk))


def safe_child(folder: Path, name: str) -> Path:
    """
    `folder / name` for a checked name.

    Raises:
        ValueError: The name leaves the folder; names were checked before.
    """
    relative = PurePosixPath(name)
    if ".." in relative.parts or relative.is_absolute() or "\\" in name:
        msg = f"unsafe name {name!r}"
        raise ValueError(msg)
    return folder / name
