"""A folder of files, on disk or in a bucket, read in small strict parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build.errors import VerifyFailed
from lmi_build.values.manifest import unsafe_path_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# The largest file of settings that is read whole: the configuration of an engine
# with a rule for each layer has some hundred kilobytes.
MAX_TEXT_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """
    What lies in a folder, and a way to read one file of it.

    Args:
        sizes: Bytes of each file by its path, relative and with forward slashes.
        read: The whole content of one file, by the same path.
        where: What messages call the folder.
    """

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]
    where: str

    def has(self, path: str) -> bool:
        """Whether there is a file of that path."""
        return path in self.sizes

    def names(self) -> tuple[str, ...]:
        """The files that lie directly in it, sorted."""
        return tuple(sorted(path for path in self.sizes if "/" not in path))

    def folders(self) -> tuple[str, ...]:
        """The folders that lie directly in it and hold a file, sorted."""
        return tuple(
            sorted({path.partition("/")[0] for path in self.sizes if "/" in path})
        )

    def inside(self, prefix: str) -> Folder:
        """One folder of it, empty when there is none; `.` is the folder itself."""
        if prefix == ".":
            return self
        start = f"{prefix}/"
        return Folder(
            sizes=MappingProxyType(
                {
                    path.removeprefix(start): size
                    for path, size in self.sizes.items()
                    if path.startswith(start)
                }
            ),
            read=lambda path: self.read(start + path),
            where=f"{self.where}/{prefix}",
        )


def listed_folder(
    sizes: Mapping[str, int], read: Callable[[str], bytes], *, where: str
) -> Folder:
    """
    A folder that was listed elsewhere, such as the objects under a prefix.

    Args:
        sizes: Bytes of each file by path.
        read: The whole content of one file.
        where: What messages call the folder.

    Raises:
        VerifyFailed: `engine.unsafe-path`, when a path leaves the folder or would
            mean something else on another system.
    """
    for path in sizes:
        reason = unsafe_path_reason(path)
        if reason is not None:
            raise _unsafe(where, path, reason)
    return Folder(sizes=MappingProxyType(dict(sizes)), read=read, where=where)


def local_folder(root: Path) -> Folder:
    """
    A folder on disk.

    Raises:
        VerifyFailed: `engine.unsafe-path`, when a link leads out of it or nowhere.
        OSError: It cannot be listed.
    """
    top = root.resolve(strict=True)
    sizes: dict[str, int] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            target = path.resolve()
            if not target.exists():
                raise _unsafe(str(root), name, "it is a link to nothing")
            if not target.is_relative_to(top):
                raise _unsafe(str(root), name, "it is a link out of the folder")
        if path.is_file():
            sizes[name] = path.stat().st_size
    return listed_folder(
        sizes, lambda name: (root / name).read_bytes(), where=str(root)
    )


def read_text(folder: Folder, path: str) -> bytes:
    """
    The bytes of one small file.

    Raises:
        VerifyFailed: `engine.unreadable`, when it is missing or absurdly large.
    """
    size = folder.sizes.get(path)
    if size is None:
        raise unreadable(folder, path, "it is missing")
    if size > MAX_TEXT_BYTES:
        raise unreadable(
            folder, path, f"{size} bytes are more than the {MAX_TEXT_BYTES} allowed"
        )
    return folder.read(path)


def read_object(folder: Folder, path: str) -> dict[str, Any]:
    """
    The JSON object in one small file.

    Raises:
        VerifyFailed: `engine.unreadable`, when it is no object in UTF-8, or names
            one thing twice.
    """
    data = read_text(folder, path)
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise unreadable(folder, path, f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise unreadable(folder, path, f"it holds a {kind}, not an object")
    return document


def unreadable(folder: Folder, path: str, reason: str) -> VerifyFailed:
    """The error about a file that cannot be understood."""
    return VerifyFailed(
        f"{folder.where}: {path}: {reason}",
        code="engine.unreadable",
        hints=("build the artifact again, or fetch it again from where it came",),
    )


def _unsafe(where: str, path: str, reason: str) -> VerifyFailed:
    return VerifyFailed(
        f"{where}: the path {path!r} is refused: {reason}",
        code="engine.unsafe-path",
        hints=("remove that file; the rest of the artifact was not read",),
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} stands twice in one object")
        found[name] = value
    return found
