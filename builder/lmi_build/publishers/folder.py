"""
A folder as a destination: the laws of S3 on a filesystem.

| on disk                     | meaning                                         |
| --------------------------- | ----------------------------------------------- |
| `.lmi-build-*.tmp`          | a write that has not ended; nobody reads it     |
| any other file              | whole and synced: it came by rename or link     |
| `manifest.json`             | came by link, which fails when one is there     |
| `.lmi-build-*.lock`         | held while `latest.json` is compared and swapped |
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.digest import CHUNK_BYTES, digest_bytes, digest_file
from lmi_build.errors import RemoteFailed, is_disk_full
from lmi_build.remote.place import Stopped, Stored, content_differs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lmi_build.values.manifest import FileEntry

_PREFIX = ".lmi-build-"


class FolderPlace:
    """
    A folder on a filesystem that has hard links and advisory locks.

    Args:
        root: Created when it is missing and something is written.
    """

    # Disks gain nothing from more; two overlap hashing with writing.
    num_files_at_once = 2

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._stopped = threading.Event()

    def uri(self, key: str) -> str:
        """The path."""
        text = str(self.root / key)
        return text + "/" if key.endswith("/") else text

    def listing(self, prefix: str) -> Mapping[str, int]:
        """Files below a prefix, without unfinished ones."""
        base = self.root / prefix
        with self._explained(prefix):
            return {
                path.relative_to(base).as_posix(): path.stat().st_size
                for path in base.rglob("*")
                if path.is_file() and not path.name.startswith(_PREFIX)
            }

    def holds(self, key: str, entry: FileEntry) -> bool:
        """Whether the file hashes to the entry; a disk is cheap to ask."""
        path = self.root / key
        with self._explained(key):
            if not path.is_file() or path.stat().st_size != entry.size:
                return False
            return digest_file(path) == entry.digest

    def send(
        self, source: Path, key: str, entry: FileEntry, sent: Callable[[int], None]
    ) -> None:
        """Copy, hash and sync into a temporary file, then rename."""
        sha = hashlib.sha256()
        # The source is opened outside, so that its faults are not the folder's.
        with (
            source.open("rb", buffering=0) as stream,
            self._writing(key) as (descriptor, temporary),
        ):
            while chunk := stream.read(CHUNK_BYTES):
                if self._stopped.is_set():
                    raise Stopped
                sha.update(chunk)
                _write_all(descriptor, chunk)
                sent(len(chunk))
            if sha.hexdigest() != entry.sha256:
                raise content_differs(source, sha.hexdigest(), entry)
            os.fsync(descriptor)
            temporary.replace(self.root / key)
            _sync_folder(self.root / key)

    def stop(self) -> None:
        """Copies end within a megabyte."""
        self._stopped.set()

    def read(self, key: str) -> Stored | None:
        """A small file; its tag is its digest."""
        with self._explained(key):
            try:
                data = (self.root / key).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Stored(data=data, tag=digest_bytes(data))

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """The file's bytes from an offset on."""
        with self._explained(key), (self.root / key).open("rb", buffering=0) as stream:
            stream.seek(start)
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def create(self, key: str, data: bytes) -> bool:
        """Link a synced temporary file to its name, which never replaces one."""
        with self._writing(key) as (descriptor, temporary):
            _write_all(descriptor, data)
            os.fsync(descriptor)
            try:
                os.link(temporary, self.root / key)
            except FileExistsError:
                return False
            _sync_folder(self.root / key)
            return True

    def swap(self, key: str, data: bytes, *, tag: str) -> bool:
        """Replace under a lock that every publisher of this folder takes."""
        path = self.root / key
        lock = path.with_name(f"{_PREFIX}{path.name}.lock")
        with (
            self._explained(key),
            lock.open("ab") as held,
            self._writing(key) as (descriptor, temporary),
        ):
            fcntl.flock(held, fcntl.LOCK_EX)
            now = self.read(key)
            if now is None or now.tag != tag:
                return False
            _write_all(descriptor, data)
            os.fsync(descriptor)
            temporary.replace(path)
            _sync_folder(path)
            return True

    def tidy(self, prefix: str) -> None:
        """Remove temporary files that no living publisher holds a lock on."""
        with self._explained(prefix):
            for path in sorted((self.root / prefix).rglob(f"{_PREFIX}*.tmp")):
                _remove_unless_held(path)

    def close(self) -> None:
        """Nothing is held open."""

    @contextmanager
    def _writing(self, key: str) -> Iterator[tuple[int, Path]]:
        """A locked temporary file beside `key`, gone afterwards unless renamed."""
        path = self.root / key
        with self._explained(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = _make_temporary(path.parent)
            try:
                os.fchmod(descriptor, 0o644)
                yield descriptor, temporary
            finally:
                os.close(descriptor)
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _explain(error, self.uri(key)) from error


def _make_temporary(folder: Path) -> tuple[int, Path]:
    """A new locked file; one that `tidy` took before it was locked is given up."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=".tmp", dir=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)


def _remove_unless_held(path: Path) -> None:
    """Remove a temporary file, unless a living publisher writes or just renamed it."""
    with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(path: Path) -> None:
    """Make a rename or a link in the folder of `path` outlive a power cut."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, where: str) -> RemoteFailed:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return RemoteFailed(
            f"there is no {where}",
            code="remote.not-found",
            hints=("name the folder that holds `manifest.json` or `latest.json`",),
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return RemoteFailed(
            f"{where}: {error.strerror}",
            code="remote.access-denied",
            hints=("publish to a folder this user may write",),
        )
    if is_disk_full(error):
        return RemoteFailed(
            f"{where}: {error.strerror}",
            code="remote.full",
            hints=("free space there; files sent whole so far are kept",),
        )
    return RemoteFailed(
        f"{where}: {error.strerror or error}",
        code="remote.refused",
        hints=("check the disk or the mount, then publish again",),
    )
