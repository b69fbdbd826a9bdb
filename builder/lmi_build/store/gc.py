"""Checking and emptying a store."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.digest import digest_file
from lmi_build.errors import StoreUnusable
from lmi_build.store import files
from lmi_build.store.record import hex_of, record_fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lmi_build.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """
    One thing in a store that is not as it should be.

    Args:
        code: Stable slug.
        message: What, with both digests.
        path: The file.
        keys: Results that cannot be used because of it.
    """

    code: str
    message: str
    path: Path
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordRow:
    """One line of `cache ls`."""

    key: str
    stage: str
    size: int
    created: str
    last_used: float
    usable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """What a prune removed or would remove."""

    keys: tuple[str, ...]
    num_blobs: int
    freed_bytes: int


def list_records(store: Store) -> list[RecordRow]:
    """
    Every record, least recently used first.

    Raises:
        StoreUnusable: The store cannot be read.
    """
    with files.explaining("reading the store", store.root):
        return _rows(store)


def _rows(store: Store) -> list[RecordRow]:
    rows = []
    for path, document in store.records():
        key = f"sha256:{path.stem}"
        usable = document is not None and record_fault(key, document) is None
        fields = document if usable and document is not None else {}
        rows.append(
            RecordRow(
                key=key,
                stage=str(fields.get("stage", "?")),
                size=sum(int(size) for _, _, size in fields.get("entries", ())),
                created=str(fields.get("created", "?")),
                last_used=path.stat().st_mtime,
                usable=usable,
            )
        )
    return sorted(rows, key=lambda row: row.last_used)


def verify_store(
    store: Store, progress: Callable[[int, int], None] | None = None
) -> list[Fault]:
    """
    Read every byte of a store and name everything that is wrong.

    Args:
        store: The store.
        progress: Called with (blobs done, blobs in all).

    Raises:
        StoreUnusable: The store cannot be read.
    """
    with files.explaining("reading the store", store.root):
        return _find_faults(store, progress)


def _find_faults(
    store: Store, progress: Callable[[int, int], None] | None
) -> list[Fault]:
    users: dict[str, list[str]] = {}
    faults: list[Fault] = []
    for path, document in store.records():
        key = f"sha256:{path.stem}"
        why = record_fault(key, document)
        if why is not None or document is None:
            faults.append(_record_fault(path, key, why or "it is not JSON"))
            continue
        for _, digest, _ in document["entries"]:
            users.setdefault(digest, []).append(key)
    blobs = sorted((store.root / "blobs").glob("*/*"))
    for done, blob in enumerate(blobs):
        if progress is not None:
            progress(done, len(blobs))
        fault = _blob_fault(blob, users)
        if fault is not None:
            faults.append(fault)
    present = {f"sha256:{blob.name}" for blob in blobs}
    for digest, keys in sorted(users.items()):
        if digest not in present:
            path = store.blob_path(digest)
            message = f"a file is missing: {digest}"
            faults.append(
                Fault(code="store.missing", message=message, path=path, keys=(*keys,))
            )
    return faults


def _record_fault(path: Path, key: str, why: str) -> Fault:
    message = f"a record cannot be used: {why}"
    return Fault(code="store.bad-record", message=message, path=path, keys=(key,))


def _blob_fault(blob: Path, users: dict[str, list[str]]) -> Fault | None:
    expected = f"sha256:{blob.name}"
    found = digest_file(blob)
    if found == expected:
        return None
    return Fault(
        code="store.corrupt",
        message=f"content changed: expected {expected}, found {found}",
        path=blob,
        keys=tuple(users.get(expected, ())),
    )


def repair(store: Store, faults: list[Fault]) -> None:
    """
    Remove what is wrong and every record that needs it; builds make it again.

    Raises:
        StoreUnusable: A build is using the store, or it cannot be written.
    """
    with (
        files.explaining("repairing the store", store.root),
        files.locked(store.gc_lock, wait=False) as held,
    ):
        _refuse_if_busy(held)
        for fault in faults:
            fault.path.unlink(missing_ok=True)
            for key in fault.keys:
                store.record_path(key).unlink(missing_ok=True)


def prune(
    store: Store,
    *,
    older_than_seconds: float | None = None,
    max_bytes: int | None = None,
    dry_run: bool = False,
) -> Pruned:
    """
    Remove results, least recently used first, and the files only they needed.

    Args:
        store: The store.
        older_than_seconds: Results not used for this long go.
        max_bytes: Results go until the rest is no larger than this.
        dry_run: Say what would go; touch nothing.

    Raises:
        StoreUnusable: A build is using the store, or it cannot be written.
    """
    with (
        files.explaining("pruning the store", store.root),
        files.locked(store.gc_lock, wait=False) as held,
    ):
        _refuse_if_busy(held)
        rows = list_records(store)
        gone = _choose(rows, older_than_seconds, max_bytes)
        keep = {row.key for row in rows} - gone
        needed = _needed(store, keep)
        blobs = (store.root / "blobs").glob("*/*")
        doomed = [blob for blob in blobs if blob.name not in needed]
        freed = sum(blob.stat().st_size for blob in doomed)
        if not dry_run:
            _remove(store, gone, doomed)
    return Pruned(keys=tuple(sorted(gone)), num_blobs=len(doomed), freed_bytes=freed)


def _refuse_if_busy(held: bool) -> None:  # noqa: FBT001 - the answer of the lock
    if not held:
        raise StoreUnusable(
            "a build is using the store",
            code="store.busy",
            hints=("wait for it to end, then try again",),
        )


def _choose(
    rows: list[RecordRow], older_than_seconds: float | None, max_bytes: int | None
) -> set[str]:
    gone = {row.key for row in rows if not row.usable}
    if older_than_seconds is not None:
        limit = time.time() - older_than_seconds
        gone |= {row.key for row in rows if row.last_used <= limit}
    if max_bytes is not None:
        total = sum(row.size for row in rows if row.key not in gone)
        for row in rows:
            if total <= max_bytes:
                break
            if row.key not in gone:
                gone.add(row.key)
                total -= row.size
    return gone


def _needed(store: Store, keep: set[str]) -> set[str]:
    needed: set[str] = set()
    for path, document in store.records():
        if document is not None and f"sha256:{path.stem}" in keep:
            needed |= {hex_of(digest) for _, digest, _ in document["entries"]}
    return needed


def _remove(store: Store, gone: set[str], blobs: list[Path]) -> None:
    for key in gone:
        store.record_path(key).unlink(missing_ok=True)
    for blob in blobs:
        blob.unlink(missing_ok=True)
    for name in ("scratch", "state"):
        for leftover in (store.root / name).glob("*"):
            files.remove_tree(leftover)
    for unfinished in (store.root / "actions").glob("*/.*"):
        unfinished.unlink(missing_ok=True)
