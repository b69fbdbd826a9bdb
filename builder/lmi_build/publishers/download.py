"""
Fetching an artifact into a folder, hashing each byte as it comes.

| in the folder                   | meaning to the next attempt                      |
| ------------------------------- | ------------------------------------------------ |
| nothing                         | begin                                            |
| `.lmi-build-download/manifest`  | begun: the same artifact may be continued        |
| `.lmi-build-download/<n>`       | beginning of a file: hashed again, then continued |
| a file of the manifest          | whole when begun: hashed again, kept if right    |
| `manifest.json`                 | everything else is there                         |
"""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING

from lmi_build.digest import CHUNK_BYTES, digest_file
from lmi_build.errors import DoesNotFit, UsageInvalid, VerifyFailed
from lmi_build.events import Emit, StageProgress
from lmi_build.publishers.layout import parse_files
from lmi_build.publishers.reader import ArtifactReader, open_artifact
from lmi_build.units import format_bytes
from lmi_build.values.manifest import MANIFEST_NAME, RECORD_NAMES, FileEntry

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.publish import Transfer
    from lmi_build.values.recipe import PublishSpec
    from lmi_build.values.settings import Settings

_STAGE = "download"
_STATE = ".lmi-build-download"


def download(
    uri: str,
    dest: Path,
    settings: Settings,
    emit: Emit,
    *,
    access: PublishSpec | None = None,
    transfer: Transfer | None = None,
) -> str:
    """
    Fetch an artifact into an empty folder; run again after a fault, it goes on.

    Args:
        uri: As `open_artifact` takes it.
        dest: Empty or missing folder, or one that an attempt at this artifact left.
        settings: Credentials.
        emit: Watcher; gets `StageProgress` in bytes.
        access: Endpoint, region, bucket owner.
        transfer: Patience.

    Returns:
        The version's URI, with `latest.json` followed.

    Raises:
        UsageInvalid: `publish.not-empty`.
        DoesNotFit: `publish.disk-full`, before anything is fetched.
        VerifyFailed: `publish.content-wrong`: the file that came is removed.
        RemoteFailed: The place refused or vanished.
    """
    with open_artifact(uri, settings, access=access, transfer=transfer) as reader:
        manifest = reader.manifest_bytes()
        entries = parse_files(manifest, where=reader.uri + MANIFEST_NAME)
        state = _begin(dest, manifest)
        _check_room(dest, entries)
        total = sum(entry.size for entry in entries)
        done = 0
        for index, entry in enumerate(entries):
            _fetch(reader, entry, dest / entry.path, state / str(index))
            done += entry.size
            emit(StageProgress(stage=_STAGE, done=done, total=total, unit="bytes"))
        for path in sorted(set(reader.list()) & RECORD_NAMES):
            _write(dest / path, reader.read(path), state / "beside")
        _write(dest / MANIFEST_NAME, manifest, state / "last")
        shutil.rmtree(state)
        return reader.uri


def _begin(dest: Path, manifest: bytes) -> Path:
    """Claim the folder for this artifact."""
    state = dest / _STATE
    begun = state / "manifest"
    dest.mkdir(parents=True, exist_ok=True)
    if begun.is_file() and begun.read_bytes() == manifest:
        return state
    foreign = sorted(path.name for path in dest.iterdir() if path != state)
    # A claim that never became a `manifest` file was killed before any data.
    if foreign or begun.exists():
        raise UsageInvalid(
            f"{dest} holds {foreign[0] if foreign else 'another download'}",
            code="publish.not-empty",
            hints=("name an empty or missing folder",),
        )
    state.mkdir(exist_ok=True)
    _write(begun, manifest, state / "claim")
    return state


def _check_room(dest: Path, entries: tuple[FileEntry, ...]) -> None:
    there = sum(p.stat().st_size for p in dest.rglob("*") if p.is_file())
    needed = sum(entry.size for entry in entries) - there
    free = shutil.disk_usage(dest).free
    if needed > free:
        raise DoesNotFit(
            f"{dest} has {format_bytes(free)} free, the artifact needs "
            f"{format_bytes(needed)} more",
            code="publish.disk-full",
            hints=("free space, or name a folder on a larger disk",),
        )


def _fetch(reader: ArtifactReader, entry: FileEntry, path: Path, partial: Path) -> None:
    """One file: what is there is hashed, only the rest is asked for."""
    if path.is_file() and digest_file(path) == entry.digest:
        return
    sha = hashlib.sha256()
    done = _hash_partial(partial, entry, sha)
    with partial.open("ab") as out:
        if done < entry.size:
            for chunk in reader.stream(entry.path, start=done):
                sha.update(chunk)
                out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if sha.hexdigest() != entry.sha256:
        partial.unlink()
        if done:
            # What an earlier attempt left may be at fault, not what is published.
            _fetch(reader, entry, path, partial)
            return
        raise VerifyFailed(
            f"{reader.uri}{entry.path} hashes to sha256:{sha.hexdigest()}, "
            f"the manifest says {entry.digest}",
            code="publish.content-wrong",
            hints=(f"run `lmi-build verify {reader.uri}` to see all that is wrong",),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(path)


def _hash_partial(partial: Path, entry: FileEntry, sha: hashlib._Hash) -> int:
    """Take up what an earlier attempt fetched of a file; returns its bytes."""
    if not partial.is_file():
        return 0
    if partial.stat().st_size > entry.size:
        partial.unlink()
        return 0
    with partial.open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha.update(chunk)
    return partial.stat().st_size


def _write(path: Path, data: bytes, temporary: Path) -> None:
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
