"""An artifact where it lies against its own manifest, byte for byte."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import TYPE_CHECKING

from lmi_build.errors import Problem, RemoteFailed, VerifyFailed
from lmi_build.events import Emit, StageProgress
from lmi_build.values.manifest import MANIFEST_NAME, RECORD_NAMES, FileEntry

if TYPE_CHECKING:
    from lmi_build.publishers.reader import ArtifactReader

_STAGE = "verify"
# Hashing is the bound (1.8 GB per CPU second); four overlap it with the network.
_NUM_STREAMS = 4


def verify_published(reader: ArtifactReader, emit: Emit) -> tuple[Problem, ...]:
    """
    Read every byte of an artifact and compare.

    Args:
        reader: The artifact.
        emit: Watcher; gets `StageProgress` in bytes.

    Returns:
        Everything that is wrong, by path: a manifest that is not the promised one,
        files missing, of another length, of other content, or not listed.

    Raises:
        RemoteFailed: The place refused or vanished, or there is no manifest.
    """
    try:
        entries = reader.entries()
    except VerifyFailed as error:
        return (_problem(error.code, error.message, MANIFEST_NAME, error.hints[0]),)
    there = reader.list()
    total = sum(entry.size for entry in entries)
    done, lock, stopped = 0, Lock(), Event()

    def check(entry: FileEntry) -> Problem | None:
        nonlocal done
        found = _check_entry(reader, entry, there.get(entry.path), stopped)
        with lock:
            done += entry.size
            emit(StageProgress(stage=_STAGE, done=done, total=total, unit="bytes"))
        return found

    with ThreadPoolExecutor(_NUM_STREAMS) as pool:
        try:
            problems = [problem for problem in pool.map(check, entries) if problem]
        finally:
            # After a fault or an interrupt nobody waits for what is still read.
            stopped.set()
    listed = {entry.path for entry in entries} | RECORD_NAMES | {MANIFEST_NAME}
    problems += [
        _problem(
            "publish.file-foreign",
            f"`{path}` ({there[path]} bytes) is not in the manifest",
            path,
            f"remove it: {reader.uri}{path}",
        )
        for path in set(there) - listed
    ]
    return tuple(sorted(problems, key=lambda problem: problem.path))


def _check_entry(
    reader: ArtifactReader, entry: FileEntry, num_bytes: int | None, stopped: Event
) -> Problem | None:
    if num_bytes is None:
        return _missing(entry)
    if num_bytes != entry.size:
        return _wrong(entry, f"has {num_bytes} bytes, the manifest says {entry.size}")
    sha = hashlib.sha256()
    try:
        for chunk in reader.stream(entry.path):
            sha.update(chunk)
            if stopped.is_set():
                return None
    except RemoteFailed as error:
        if error.code == "remote.not-found":
            return _missing(entry)
        raise
    if sha.hexdigest() != entry.sha256:
        return _wrong(
            entry,
            f"hashes to sha256:{sha.hexdigest()}, the manifest says {entry.digest}",
        )
    return None


def _missing(entry: FileEntry) -> Problem:
    return _problem(
        "publish.file-missing",
        f"`{entry.path}` ({entry.size} bytes) is not there",
        entry.path,
        "do not serve it: remove its manifest.json and publish again",
    )


def _wrong(entry: FileEntry, what: str) -> Problem:
    return _problem(
        "publish.content-wrong",
        f"`{entry.path}` {what}",
        entry.path,
        "do not serve it: remove its manifest.json and publish again",
    )


def _problem(code: str, message: str, path: str, hint: str) -> Problem:
    return Problem(code=code, message=message, path=path, hint=hint)
