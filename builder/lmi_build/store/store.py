"""
A content-addressed store on a file system.

```
<root>/
  blobs/ab/<64 hex>          files by content, read-only, modification time 1980-01-01
  actions/ab/<64 hex>.json   records by key: key document, tree, cost
  state/<64 hex>/            half-done work of a key, for the next attempt
  scratch/<64 hex>.<n>/      one attempt
  locks/<64 hex>.lock        held while a key is being built; gc.lock by all builds
  builds/<recipe>/<run>/     logs and events of a run
```

A commit writes blobs, syncs them, and writes the record last, each by rename. What
may be found on disk after a crash, and what becomes of it:

| found | meaning | action |
| --- | --- | --- |
| temporary file beside a blob or record | killed while writing | removed by prune |
| blob without record | killed before the record | kept; used again or pruned |
| record whose blobs are all there | a result | a hit |
| record with a missing or short blob | somebody deleted files | a miss, rebuilt |
| record that does not match its own digests | damage | a miss; `verify` names it |
| scratch folder of an unlocked key | killed attempt | removed by the next one |
| state folder of an unlocked key | killed attempt | handed to the next one |
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest, digest_file, digest_tree
from lmi_build.errors import StageFailed
from lmi_build.store import files
from lmi_build.store.files import BLOB_MTIME_NS
from lmi_build.store.record import RECORD_SCHEMA, hex_of, record_fault, result_of
from lmi_build.values.result import Entry, Measure, StageResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from lmi_build.digest import JSONValue


def _ignore(_num_bytes: int) -> None:
    """Nobody watches."""


class Store:
    """
    The store under one root folder.

    Args:
        root: Created on first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._failures: dict[str, dict[str, Any]] = {}

    # -- where things lie ------------------------------------------------------

    def blob_path(self, digest: str) -> Path:
        """Where a content lies, whether or not it is there."""
        name = hex_of(digest)
        return self.root / "blobs" / name[:2] / name

    def record_path(self, key: str) -> Path:
        """Where the record of a key lies, whether or not it is there."""
        name = hex_of(key)
        return self.root / "actions" / name[:2] / f"{name}.json"

    def state_dir(self, key: str) -> Path:
        """Where an attempt may leave what the next one can use."""
        return self.root / "state" / hex_of(key)

    @property
    def gc_lock(self) -> Path:
        """Held shared by builds and exclusively by prune."""
        return self.root / "locks" / "gc.lock"

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """
        Keep prune and repair away while something is built.

        Raises:
            StoreUnusable: The store cannot be written.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(files.locked(self.gc_lock, shared=True))
            except OSError as error:
                doing = "using the store"
                raise files.explain_os_error(error, doing, self.root) from error
            yield

    # -- reading ---------------------------------------------------------------

    def read_record(self, key: str) -> dict[str, Any] | None:
        """The raw record of a key, or None when it is missing or damaged."""
        try:
            document = json.loads(self.record_path(key).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            raise files.explain_os_error(
                error, "reading the store", self.record_path(key)
            ) from error
        return document if record_fault(key, document) is None else None

    def lookup(self, key: Digest) -> StageResult | None:
        """
        The result of a key if every one of its files is there at its full size.

        Contents are not read; `verify` does that.
        """
        return self.lookup_here(key)

    def lookup_here(self, key: Digest) -> StageResult | None:
        """The result of a key, if it lies in this folder."""
        document = self.read_record(key)
        if document is None:
            return None
        result = result_of(document)
        if any(not self._present(entry) for entry in result.entries):
            return None
        with suppress(OSError):  # a read-only store still answers
            os.utime(self.record_path(key))
        return result

    def _present(self, entry: Entry) -> bool:
        try:
            return self.blob_path(entry.digest).stat().st_size == entry.size
        except OSError:
            return False

    def lookup_all(self, keys: Iterable[Digest]) -> dict[Digest, StageResult | None]:
        """The result of each key."""
        return {key: self.lookup(key) for key in keys}

    def is_here(self, result: StageResult) -> bool:
        """Whether every file of a result lies in this folder."""
        return all(self._present(entry) for entry in result.entries)

    def bring(
        self, results: Iterable[StageResult], got: Callable[[int], None] = _ignore
    ) -> None:
        """Make sure that every file of these results lies in this folder."""

    def share(
        self,
        result: StageResult,  # noqa: ARG002 - nobody is there to have it
        *,
        thorough: bool = False,  # noqa: ARG002
    ) -> int:
        """Let others have a result; returns the bytes that were sent."""
        return 0

    def close(self) -> None:
        """Nothing is held open."""

    def materialize(self, result: StageResult, dest: Path) -> None:
        """
        Lay a result out as a folder; files share bytes with the store.

        Raises:
            StoreUnusable: The folder cannot be written.
        """
        with files.explaining("laying out a result", dest):
            self.lay_out(result, dest)

    def lay_out(self, result: StageResult, dest: Path) -> None:
        """
        Do what `materialize` does, where a failure is the caller's to explain.

        Raises:
            OSError: The folder cannot be written.
        """
        dest.mkdir(parents=True, exist_ok=True)
        for entry in result.entries:
            files.place(self.blob_path(entry.digest), dest / entry.path)

    # -- writing ---------------------------------------------------------------

    @contextmanager
    def building(self, key: Digest, on_wait: Callable[[], None]) -> Iterator[Path]:
        """
        Hold a key while it is built, and give an empty scratch folder for it.

        Whoever else wants the key waits here; what a killed attempt left in scratch
        is removed, what it left in `state_dir` stays.
        """
        lock = self.root / "locks" / f"{hex_of(key)}.lock"
        try:
            with files.locked(lock, wait=False) as held:
                if held:
                    with self._fresh_scratch(key) as scratch:
                        yield scratch
                    return
            on_wait()
            with files.locked(lock), self._fresh_scratch(key) as scratch:
                yield scratch
        except OSError as error:
            raise files.explain_os_error(error, "using the store", self.root) from error

    @contextmanager
    def try_building(self, key: Digest, *, run: str = "") -> Iterator[Path | None]:
        """
        Do what `building` does, but yield None where somebody else holds the key.

        Args:
            key: Name of the work.
            run: What failed in this run is not yielded again in it.
        """
        lock = self.root / "locks" / f"{hex_of(key)}.lock"
        if key in self._failures and self._failures[key]["run"] != run:
            del self._failures[key]  # of an earlier run
        try:
            with files.locked(lock, wait=False) as held:
                if held and key not in self._failures:
                    with self._fresh_scratch(key) as scratch:
                        yield scratch
                else:
                    yield None
        except OSError as error:
            raise files.explain_os_error(error, "using the store", self.root) from error

    def fail(self, key: Digest, *, run: str, error: Mapping[str, Any]) -> None:
        """Remember that a key failed in a run, for those who share it."""
        self._failures[key] = {"run": run, "error": dict(error)}

    def failure(self, key: Digest) -> Mapping[str, Any] | None:
        """The error that `try_building` found, or that `fail` was told of."""
        found = self._failures.get(key)
        return found["error"] if found else None

    def _scratch(self, key: str) -> Path:
        return self.root / "scratch" / hex_of(key)

    @contextmanager
    def _fresh_scratch(self, key: str) -> Iterator[Path]:
        """An empty folder, removed at the end; the caller holds the key's lock."""
        scratch = self._scratch(key)
        files.remove_tree(scratch)
        scratch.mkdir(parents=True)
        self.state_dir(key).mkdir(parents=True, exist_ok=True)
        try:
            yield scratch
        finally:
            with suppress(OSError):  # the next holder of the key removes it
                files.remove_tree(scratch)

    def commit(
        self,
        key: Digest,
        staged: Path,
        *,
        key_document: Mapping[str, JSONValue],
        stage: str,
        measure: Measure,
    ) -> StageResult:
        """
        Keep a finished folder under its key; the caller holds `building(key)`.

        Args:
            key: Name of the work.
            staged: The folder; its files move into the store.
            key_document: What the key was made from, kept for `why`.
            stage: Kind of the stage, for `cache ls`.
            measure: What it cost.

        Raises:
            StageFailed: The folder holds a link or a special file.
            DoesNotFit: The disk is full.
        """
        try:
            found = _walk(staged)
            linked = any(path.stat().st_nlink > 1 for path in found)
            inodes = self._inodes() if linked else {}
            entries = tuple(self._keep(path, staged, inodes) for path in found)
            digest = digest_tree((e.path, e.digest, e.size) for e in entries)
            record = {
                "schema": RECORD_SCHEMA,
                "key": key,
                "key_document": dict(key_document),
                "stage": stage,
                "digest": digest,
                "entries": [[e.path, e.digest, e.size] for e in entries],
                "measure": asdict(measure),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            files.write_atomic(
                self.record_path(key), json.dumps(record, indent=1).encode()
            )
            files.remove_tree(self.state_dir(key))
        except OSError as error:
            raise files.explain_os_error(error, "keeping a result", staged) from error
        return StageResult(key=key, digest=digest, entries=entries, measure=measure)

    def _keep(
        self, path: Path, staged: Path, inodes: Mapping[tuple[int, int], Digest]
    ) -> Entry:
        status = path.stat()
        # A stage that passes a large file through links it; its bytes were hashed
        # when they were committed, so hashing them again would only cost a read.
        known = inodes.get((status.st_dev, status.st_ino))
        untouched = status.st_mtime_ns == BLOB_MTIME_NS
        digest = known if known and untouched else digest_file(path)
        blob = self.blob_path(digest)
        if not blob.exists() or blob.stat().st_size != status.st_size:
            blob.parent.mkdir(parents=True, exist_ok=True)
            if status.st_nlink > 1:  # somebody else's file: never made read-only
                path = files.private_copy(path)
            files.sync_file(path)
            files.make_blob(path, blob)
        relative = path.relative_to(staged).as_posix()
        return Entry(path=relative, digest=digest, size=status.st_size)

    def _inodes(self) -> dict[tuple[int, int], Digest]:
        found: dict[tuple[int, int], Digest] = {}
        for folder in (self.root / "blobs").glob("*"):
            for item in os.scandir(folder):
                info = item.stat()
                found[info.st_dev, info.st_ino] = Digest(f"sha256:{item.name}")
        return found

    def records(self) -> Iterator[tuple[Path, dict[str, Any] | None]]:
        """Every record file, with None for one that cannot be read."""
        for path in sorted((self.root / "actions").glob("*/*.json")):
            yield path, _read_json(path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _walk(root: Path) -> list[Path]:
    """Regular files below a folder, sorted; anything else is a fault of the stage."""
    found: list[Path] = []
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StageFailed(
                f"a stage left something that is not a plain file: {path.name}",
                code="store.foreign-file",
                hints=("this is a bug in the provider; report it with the log",),
            )
        if path.is_file():
            found.append(path)
    return found
