"""Durable file operations: every write is temporary, flushed, renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.errors import (
    DoesNotFit,
    LmiBuildError,
    StoreUnusable,
    UsageInvalid,
    is_disk_full,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# ioctl(2) FICLONE, from linux/fs.h: share extents between two files.
_FICLONE = 0x40049409
# Another file system, one without links, or too many links to one file.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES}
# Every blob carries this modification time, so that a later write in place (root
# ignores the read-only mode) shows without reading the bytes. 1980-01-01 UTC.
BLOB_MTIME_NS = 315_532_800 * 10**9
_NO_WRITE = {errno.EROFS, errno.EACCES, errno.EPERM}


def explain_os_error(error: OSError, doing: str, path: Path) -> LmiBuildError:
    """Turn a failed system call on our own files into an error with a way out."""
    if is_disk_full(error):
        return DoesNotFit(
            f"no space left while {doing}: {path} ({error.strerror})",
            code="store.disk-full",
            hints=(
                "free some space, or run `lmi-build cache prune --older-than 30d`",
                "or choose another disk: `--cache-dir DIR`",
            ),
        )
    if error.errno in _NO_WRITE:
        return StoreUnusable(
            f"no permission to write while {doing}: {path} ({error.strerror})",
            code="store.read-only",
            hints=("choose a writable folder: `--cache-dir DIR`",),
        )
    return StoreUnusable(
        f"{error.strerror or error} while {doing}: {path}",
        code="store.io-error",
        hints=("check the disk, then run `lmi-build cache verify`",),
    )


@contextmanager
def explaining(doing: str, path: Path) -> Iterator[None]:
    """
    Let no failed system call on our own files pass without a way out.

    Raises:
        LmiBuildError: Instead of any `OSError` of the body.
    """
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, doing, path) from error


def explain_output_error(
    error: OSError, doing: str, path: Path, *, option: str
) -> LmiBuildError:
    """
    Turn a failed write where the user wanted something into an error with a way out.

    Args:
        error: What the system said.
        doing: What we were at, such as `writing the artifact`.
        path: Where.
        option: How the user chooses another place, such as `--out DIR`.
    """
    if is_disk_full(error):
        return DoesNotFit(
            f"no space left while {doing}: {path} ({error.strerror})",
            code="out.disk-full",
            hints=(f"free some space there, or choose another disk: `{option}`",),
        )
    return UsageInvalid(
        f"{path} cannot be written while {doing}: {error.strerror or error}",
        code="out.unwritable",
        hints=(f"choose a place that can be written: `{option}`",),
    )


def sync_dir(path: Path) -> None:
    """Make renames inside a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_blob(source: Path, blob: Path) -> None:
    """Give a synced file its name in the store: read-only, timeless, renamed last."""
    source.chmod(0o444)
    os.utime(source, ns=(BLOB_MTIME_NS, BLOB_MTIME_NS))
    source.replace(blob)
    sync_dir(blob.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
    sync_dir(path.parent)


def place(source: Path, dest: Path) -> None:
    """
    Make `dest` hold the content of `source` as cheaply as the file system allows.

    Shared extents first (a later write to either does not reach the other), then a
    hard link to the read-only blob, then a copy.
    """
    dest.parent.mkdir(parents=True, exist_ok=True)
    if _reflink(source, dest):
        return
    try:
        os.link(source, dest)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, dest)


def private_copy(path: Path) -> Path:
    """Replace a hard link by a file of its own with the same bytes."""
    copy = path.with_name(f".{path.name}.copy")
    if not _reflink(path, copy):
        shutil.copyfile(path, copy)
    return copy.replace(path)


def _reflink(source: Path, dest: Path) -> bool:
    with source.open("rb") as reader:
        writer = os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            shared = clone(reader.fileno(), writer)
        finally:
            os.close(writer)
    if not shared:
        dest.unlink()
    return shared


def clone(source_fd: int, dest_fd: int) -> bool:
    """
    Share the blocks of one open file with another, empty one.

    Returns:
        Whether the file system did it (btrfs, XFS); if not, nothing was written.
    """
    try:
        fcntl.ioctl(dest_fd, _FICLONE, source_fd)
    except OSError:
        # Whatever the reason, the copy that follows meets it too, and says so.
        return False
    return True


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """
    Hold an advisory lock on a file; the kernel frees it when the process dies.

    Yields:
        Whether the lock is held; only ever False with `wait=False`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Delete a folder of ours, read-only files included; a missing one is fine."""

    def retry(_function: object, name: str, _error: object) -> None:
        Path(name).parent.chmod(0o700)
        with suppress(FileNotFoundError):
            target = Path(name)
            if target.is_dir() and not target.is_symlink():
                target.rmdir()
            else:
                target.unlink()

    if path.exists():
        shutil.rmtree(path, onerror=retry)
