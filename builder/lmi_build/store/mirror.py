"""
Half-done work of a key, kept in the shared store so that another host can go on.

```
state/<64 hex>/index.json   {"schema": 1, "files": [[path, digest, bytes], ...]}
state/<64 hex>/<64 hex>     files by content
```

The index is written last and compared before (If-Match), so what it names is always
one whole moment of the folder. A moment is taken by linking every file and looking
again: a file that changes meanwhile is not in it, as nothing that is finished names a
file that is still being written.

| found                                   | action                                   |
| --------------------------------------- | ---------------------------------------- |
| no index                                | what lies here is gone on with           |
| the index that this host wrote or read  | what lies here is as new, or newer: kept |
| another index                           | replaces what lies here                  |
| an index with a missing or damaged file | nothing to go on from: a clean start     |
| files that no index names               | left by a killed host; removed at commit |
"""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lmi_build.digest import Digest, digest_file
from lmi_build.errors import PublishFailed, RemoteFailed
from lmi_build.store import files
from lmi_build.store.record import hex_of
from lmi_build.values.manifest import FileEntry, unsafe_path_reason
from lmi_build.values.publish import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmi_build.store.far import FarStore

_LOG = logging.getLogger(__name__)

_SCHEMA = 1
# A look at a folder costs nothing; what is sent is bounded by how often blocks end.
LOOK_SECONDS = 5.0
# Sending takes at most a fifth of the time, however large a state is.
_PAUSES_PER_SEND = 4
# Folders of a state that are of use to their own process only, or can be downloaded
# again as fast from where they came.
_NOT_MIRRORED = frozenset({"download", "offload", "spilled"})


class _Status(NamedTuple):
    inode: int
    num_bytes: int
    mtime_ns: int


class Mirror:
    """
    The state folder of one key while this host holds the key.

    Args:
        far: The shared store.
        key: Name of the work.
        folder: The local state folder.
        scratch: An empty place on the same file system, for links.
        holding: Whether the key is still held; what is not is not written to.
    """

    def __init__(
        self,
        far: FarStore,
        key: str,
        *,
        folder: Path,
        scratch: Path,
        holding: Callable[[], bool],
    ) -> None:
        self._far = far
        self._prefix = f"state/{hex_of(key)}/"
        self._folder = folder
        self._marker = folder.with_name(f"{folder.name}.index")
        self._scratch = scratch
        self._holding = holding
        self._tag = ""
        self._last: dict[str, _Status] = {}
        self._rows: list[tuple[str, str, int]] = []
        self._digests: dict[_Status, str] = {}
        self._there: set[str] = set()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # -- before ----------------------------------------------------------------

    def restore(self) -> bool:
        """
        Take up what another host left.

        Returns:
            Whether what lies here was replaced.

        Raises:
            RemoteFailed: The shared store cannot be asked.
            OSError: The folder cannot be written.
        """
        stored = self._far.remote.read(self._prefix + "index.json")
        if stored is None:
            return False
        self._tag = stored.tag
        with suppress(OSError):
            mine = self._marker.read_text("utf-8") == stored.tag
            if mine and any(self._folder.iterdir()):
                self._there = {name for _, name, _ in _parse(stored.data) or ()}
                return False
        files.remove_tree(self._folder)
        self._folder.mkdir(parents=True)
        rows = _parse(stored.data)
        try:
            for path, name, _ in rows or ():
                self._fetch(path, name)
        except RemoteFailed as error:
            if error.code not in {"remote.not-found", "store.remote-damaged"}:
                raise
            _LOG.warning("%s: half-done work is damaged: %s", self._prefix, error)
            files.remove_tree(self._folder)
            self._folder.mkdir()
            rows = None
        self._there = {name for _, name, _ in rows or ()}
        files.write_atomic(self._marker, stored.tag.encode())
        return bool(rows)

    def _fetch(self, path: str, name: str) -> None:
        dest = self._folder / path
        key = self._prefix + name
        with self._far.download(key, name, dest, lambda _: None) as partial:
            # What came is known there already and need not be hashed to see it.
            self._digests[_named(partial.stat())] = name
            partial.replace(dest)

    # -- meanwhile -------------------------------------------------------------

    def start(self, look_seconds: float = LOOK_SECONDS) -> None:
        """Send what changes, from a thread of its own, until `end`."""

        def watch() -> None:
            pause = look_seconds
            while not self._ended.wait(pause):
                started = time.monotonic()
                self._try()
                took = time.monotonic() - started
                pause = max(look_seconds, _PAUSES_PER_SEND * took)

        self._thread = threading.Thread(target=watch, daemon=True, name="state")
        self._thread.start()

    def pause(self) -> None:
        """Look no more, as the work is done and about to be kept."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def end(self, *, finished: bool) -> None:
        """
        Stop, with the last moment sent, or with nothing left there.

        Args:
            finished: Whether the work is done, so that its state is of no use.
        """
        self.pause()
        if not finished:
            self._try()
            return
        with suppress(FileNotFoundError):
            self._marker.unlink()
        if self._tag and self._holding():
            names = self._far.remote.listing(self._prefix)
            # The index first: without it, nobody reads the files.
            for name in sorted(names, key=lambda name: name != "index.json"):
                self._far.remote.remove(self._prefix + name)

    def _try(self) -> None:
        """A moment that cannot be sent costs only that another host starts earlier."""
        if not self._holding():
            return
        try:
            self._send_moment()
        except (OSError, RemoteFailed, Stopped) as error:
            _LOG.warning("%s: half-done work is not mirrored: %s", self._prefix, error)

    def _send_moment(self) -> None:
        seen = self._scan(self._folder)
        if seen == self._last or not seen:
            return
        files.remove_tree(self._scratch)
        try:
            for path in seen:
                link = self._scratch / path
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(self._folder / path, link)
            if self._scan(self._folder) != seen or self._scan(self._scratch) != seen:
                return  # it moved; the next look is soon
            rows = [row for path, was in seen.items() if (row := self._send(path, was))]
        finally:
            files.remove_tree(self._scratch)
        self._write_index(rows)
        if len(rows) == len(seen):
            self._last = seen

    def _send(self, path: str, was: _Status) -> tuple[str, str, int] | None:
        """Send one file unless it is there; None when it changes meanwhile."""
        link = self._scratch / path
        name = self._digests.get(was)
        if name is None:
            name = hex_of(digest_file(link))
            if _named(link.stat()) != was:
                return None
            self._digests[was] = name
        if name not in self._there:
            entry = FileEntry(path=name, size=was.num_bytes, digest=_digest(name))
            key = self._prefix + name
            try:
                if not self._far.remote.holds(key, entry):
                    self._far.remote.send(link, key, entry, lambda _: None)
            except PublishFailed:
                return None
            self._there.add(name)
        return path, name, was.num_bytes

    def _write_index(self, rows: list[tuple[str, str, int]]) -> None:
        if not rows or rows == self._rows or not self._holding():
            return
        data = json.dumps({"schema": _SCHEMA, "files": rows}).encode()
        tag = self._far.remote.put(self._prefix + "index.json", data, tag=self._tag)
        if tag is None:
            # A host that lost the key wrote once more; the holder's word counts.
            stored = self._far.remote.read(self._prefix + "index.json")
            self._tag = stored.tag if stored else ""
            raise RemoteFailed("the index had moved", code="store.remote-moved")
        self._tag, self._rows = tag, rows
        files.write_atomic(self._marker, tag.encode())
        named = {name for _, name, _ in rows}
        for name in self._there - named:
            self._far.remote.remove(self._prefix + name)
        self._there = named

    def _scan(self, root: Path) -> dict[str, _Status]:
        found: dict[str, _Status] = {}
        for folder, names, file_names in os.walk(root):
            names[:] = [name for name in names if name not in _NOT_MIRRORED]
            for name in file_names:
                path = Path(folder, name)
                relative = path.relative_to(root).as_posix()
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    plain = stat.S_ISREG(status.st_mode)
                    if plain and unsafe_path_reason(relative) is None:
                        found[relative] = _named(status)
        return found


def _named(status: os.stat_result) -> _Status:
    return _Status(status.st_ino, status.st_size, status.st_mtime_ns)


def _digest(name: str) -> Digest:
    return Digest(f"sha256:{name}")


def _parse(data: bytes) -> list[tuple[str, str, int]] | None:
    """The rows of an index, or None when it is not one of ours."""
    try:
        document = json.loads(data)
        if document["schema"] != _SCHEMA:
            return None
        rows = [(str(p), str(d), int(n)) for p, d, n in document["files"]]
    except (KeyError, TypeError, ValueError):
        return None
    if any(unsafe_path_reason(path) or "/" in name for path, name, _ in rows):
        return None
    return rows
