"""
The order in which a version becomes visible, the same at every destination.

1. A manifest that is already there is compared first: other bytes are a conflict.
2. Data goes up, skipping what is recorded to be there and right; each file is hashed
   on its way and nothing is stored under its key unless the hash is the manifest's.
3. Every object that was sent is asked for again.
4. Files beside the manifest, then the manifest, written only if there is none.
5. `latest.json` moves with compare-and-swap.

What each state of the version prefix means to the next publisher:

| state                                  | action                                    |
| -------------------------------------- | ----------------------------------------- |
| nothing                                | send everything                           |
| some data, no manifest                 | send what is missing or wrong, then commit |
| manifest, all data right               | nothing to send; move `latest.json`       |
| manifest, data missing or wrong        | `publish.damaged`; readers may be using it |
| another manifest                       | `publish.conflict`                        |
"""

from __future__ import annotations

import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from lmi_build.digest import Digest, digest_bytes
from lmi_build.errors import PublishFailed, RemoteFailed
from lmi_build.events import Emit, StageNote, StageProgress
from lmi_build.publishers.layout import (
    LATEST,
    latest_document,
    parse_latest,
    read_tree,
    version_prefix,
)
from lmi_build.values.manifest import MANIFEST_NAME, RECORD_NAMES, FileEntry
from lmi_build.values.publish import PublishReceipt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lmi_build.remote.place import Place

# A swap is lost at most once per other publisher; more than this many within one
# publish means that something rewrites `latest.json` all the time.
_SWAP_ATTEMPTS = 8


@dataclass(slots=True)
class _Progress:
    """Bytes done, told to the watcher from many threads one at a time."""

    stage: str
    total: int
    emit: Emit
    done: int = 0
    lock: Lock = field(default_factory=Lock)

    def add(self, num_bytes: int) -> None:
        with self.lock:
            self.done += num_bytes
            self.emit(
                StageProgress(
                    stage=self.stage, done=self.done, total=self.total, unit="bytes"
                )
            )

    def note(self, code: str, message: str) -> None:
        with self.lock:
            self.emit(
                StageNote(stage=self.stage, level="warning", code=code, message=message)
            )


def publish_version(
    place: Place,
    tree: Path,
    *,
    manifest_digest: Digest,
    name: str,
    extra: Mapping[str, Path],
    emit: Emit,
) -> PublishReceipt:
    """
    Make a packed tree a version at a place.

    Args:
        place: Where to.
        tree: The packed artifact.
        manifest_digest: What its `manifest.json` must hash to.
        name: The artifact's name.
        extra: File name to file, for what stands beside the manifest.
        emit: Watcher.

    Returns:
        The receipt, once everything has been asked for again and is right.

    Raises:
        PublishFailed: The tree or the destination is not what it should be.
        RemoteFailed: The destination refused or vanished.
    """
    began = time.monotonic()
    if not set(extra) <= RECORD_NAMES:
        raise ValueError(f"{sorted(set(extra) - RECORD_NAMES)} may not stand beside")
    manifest, entries = read_tree(tree, manifest_digest)
    prefix = version_prefix(name, manifest_digest)
    progress = _Progress(
        stage=f"{name}/publish",
        total=sum(entry.size for entry in entries),
        emit=emit,
    )
    committed = _is_committed(place, prefix + MANIFEST_NAME, manifest)
    held = _held(place, prefix, entries, progress)
    missing = [entry for entry in entries if entry.path not in held]
    if committed and missing:
        raise _damaged(place, prefix, missing)
    _send(place, tree, prefix, missing, progress)
    for beside, source in sorted(_beside(tree, entries, extra).items()):
        _put_beside(place, prefix + beside, source.read_bytes(), progress)
    if not committed:
        _commit(place, prefix + MANIFEST_NAME, manifest)
    place.tidy(prefix)
    _move_latest(place, f"{name}/{LATEST}", manifest_digest)
    uploaded_bytes = sum(entry.size for entry in missing)
    return PublishReceipt(
        uri=place.uri(prefix),
        manifest_digest=manifest_digest,
        num_files=len(entries) + 1,
        uploaded_bytes=uploaded_bytes,
        skipped_bytes=progress.total - uploaded_bytes,
        seconds=time.monotonic() - began,
    )


def _beside(
    tree: Path, entries: list[FileEntry], extra: Mapping[str, Path]
) -> dict[str, Path]:
    """Records to publish: those that lie in the tree unlisted, and those given."""
    listed = {entry.path for entry in entries}
    there = {
        name: tree / name for name in RECORD_NAMES - listed if (tree / name).is_file()
    }
    return {**there, **extra}


def _is_committed(place: Place, key: str, manifest: bytes) -> bool:
    there = place.read(key)
    if there is None:
        return False
    if there.data != manifest:
        raise _conflict(place, key, there.data, manifest)
    return True


def _conflict(place: Place, key: str, theirs: bytes, ours: bytes) -> PublishFailed:
    return PublishFailed(
        f"{place.uri(key)} is {digest_bytes(theirs)}, ours is {digest_bytes(ours)}",
        code="publish.conflict",
        hints=(
            (
                "publish under another prefix, or remove the foreign version: its "
                "manifest is not the one that its prefix names"
            ),
        ),
    )


def _damaged(place: Place, prefix: str, wrong: list[FileEntry]) -> PublishFailed:
    return PublishFailed(
        f"{len(wrong)} files of the published version are missing or wrong, "
        f"the first is {place.uri(prefix + wrong[0].path)}",
        code="publish.damaged",
        hints=(
            (
                f"remove {place.uri(prefix + MANIFEST_NAME)} and publish again: "
                "without its manifest the version counts as unfinished and is completed"
            ),
        ),
    )


def _held(
    place: Place, prefix: str, entries: list[FileEntry], progress: _Progress
) -> set[str]:
    """The entries that are there and right; foreign files are told, never removed."""
    there = place.listing(prefix)
    for foreign in sorted(
        set(there) - {e.path for e in entries} - RECORD_NAMES - {MANIFEST_NAME}
    ):
        progress.note(
            "publish.foreign-file",
            f"{place.uri(prefix + foreign)} does not belong to this artifact",
        )
    candidates = [e for e in entries if there.get(e.path) == e.size]
    with ThreadPoolExecutor(place.num_files_at_once) as pool:
        answers = pool.map(lambda e: place.holds(prefix + e.path, e), candidates)
        held = {e.path for e, answer in zip(candidates, answers, strict=True) if answer}
    for entry in candidates:
        if entry.path in held and entry.size:
            progress.add(entry.size)
    return held


def _send(
    place: Place,
    tree: Path,
    prefix: str,
    missing: Iterable[FileEntry],
    progress: _Progress,
) -> None:
    """Send files, largest first, and ask for each afterwards; first fault ends it."""

    def send(entry: FileEntry) -> None:
        key = prefix + entry.path
        try:
            place.send(tree / entry.path, key, entry, progress.add)
        except OSError as error:
            raise PublishFailed(
                f"cannot read {tree / entry.path}: {error.strerror or error}",
                code="publish.unreadable",
                hints=("run `lmi-build cache verify`, then build again",),
            ) from error
        if not place.holds(key, entry):
            raise PublishFailed(
                f"{place.uri(key)} was sent, but is not there as "
                f"{entry.size} bytes with {entry.digest}",
                code="publish.not-kept",
                hints=(
                    (
                        "publish again; if it stays so, the server drops metadata or "
                        "another program removes objects below this prefix"
                    ),
                ),
            )

    ordered = sorted(missing, key=lambda entry: -entry.size)
    with ThreadPoolExecutor(place.num_files_at_once) as pool:
        futures = [pool.submit(send, entry) for entry in ordered]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            faults = [e for e in (future.exception() for future in done) if e]
        except BaseException:
            # Interrupted by the user: what is in flight ends, nothing else begins.
            place.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        if faults:
            place.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise faults[0]


def _put_beside(place: Place, key: str, data: bytes, progress: _Progress) -> None:
    """A file beside the manifest is as immutable as the rest; the first one stays."""
    if place.create(key, data):
        return
    there = place.read(key)
    if there is None or there.data != data:
        progress.note(
            "publish.beside-kept",
            f"{place.uri(key)} was published before with other content and is kept",
        )


def _commit(place: Place, key: str, manifest: bytes) -> None:
    """
    Write the manifest if there is none, and read it back.

    A refusal may answer our own write whose first answer was lost, so it is the bytes
    that decide who won.
    """
    place.create(key, manifest)
    there = place.read(key)
    if there is None:
        raise PublishFailed(
            f"{place.uri(key)} was written, but is not there",
            code="publish.not-kept",
            hints=("publish again; another program removes objects here",),
        )
    if there.data != manifest:
        raise _conflict(place, key, there.data, manifest)


def _move_latest(place: Place, key: str, manifest_digest: Digest) -> None:
    """
    Point `latest.json` at our version unless somebody moved it meanwhile.

    Raises:
        PublishFailed: `publish.latest-moved`: another publisher was faster; our
            version is whole, and nothing of theirs was overwritten.
    """
    document = latest_document(manifest_digest)
    seen = place.read(key)
    for _ in range(_SWAP_ATTEMPTS):
        if seen is not None and seen.data == document:
            return
        moved = (
            place.create(key, document)
            if seen is None
            else place.swap(key, document, tag=seen.tag)
        )
        if moved:
            return
        # A refusal may answer our own write whose first answer was lost.
        now = place.read(key)
        if now is not None and now.data == document:
            return
        if now is not None and (seen is None or now.data != seen.data):
            theirs = parse_latest(now.data, where=place.uri(key))
            raise PublishFailed(
                f"{place.uri(key)} was moved to {theirs} while {manifest_digest} "
                "was published",
                code="publish.latest-moved",
                hints=(
                    (
                        "the version itself is published; run the same command again "
                        "to move `latest.json` to it"
                    ),
                ),
            )
        seen = now
    raise RemoteFailed(
        f"{place.uri(key)} could not be moved in {_SWAP_ATTEMPTS} tries",
        code="remote.refused",
        hints=("check that the server supports `If-Match` on PutObject",),
    )
