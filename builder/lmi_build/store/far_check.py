"""Reading a whole shared store, and removing what is wrong in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.store.far import blob_key, record_key
from lmi_build.store.record import parse_record

if TYPE_CHECKING:
    from lmi_build.store.far import FarStore


@dataclass(frozen=True, kw_only=True, slots=True)
class FarFault:
    """
    One object that is not as it should be.

    Args:
        code: Stable slug.
        message: What, with both digests.
        object_key: Where it lies, below the store's prefix; it need not exist.
        keys: Results that cannot be used because of it.
    """

    code: str
    message: str
    object_key: str
    keys: tuple[str, ...] = ()


def list_keys(far: FarStore) -> set[str]:
    """
    The key of every record.

    Raises:
        RemoteFailed: The store cannot be listed.
    """
    names = far.remote.listing("actions/")
    stems = (name.rpartition("/")[2].removesuffix(".json") for name in names)
    return {f"sha256:{stem}" for stem in stems}


def verify_far(far: FarStore) -> list[FarFault]:
    """
    Read every byte of a shared store and name everything that is wrong.

    Raises:
        RemoteFailed: The store cannot be read.
    """
    faults: list[FarFault] = []
    users: dict[str, list[str]] = {}
    for key, entries, why in _records(far):
        if why:
            message = f"a record cannot be used: {why}"
            faults.append(
                FarFault(
                    code="store.bad-record",
                    message=message,
                    object_key=record_key(key),
                    keys=(key,),
                )
            )
        for digest in entries:
            users.setdefault(digest, []).append(key)
    sizes = far.remote.listing("blobs/")
    there = {f"sha256:{name.rpartition('/')[2]}" for name in sizes}
    faults += [
        _fault("store.missing", digest, "a file is missing", users)
        for digest in sorted(users.keys() - there)
    ]
    for digest, found in far.each(lambda d: _hash(far, d), sorted(there)):
        if found != digest:
            why = f"content changed: found {found}, expected"
            faults.append(_fault("store.corrupt", digest, why, users))
    return faults


def _records(far: FarStore) -> list[tuple[str, list[str], str]]:
    """Key, digests of its files, and what is wrong, of every record."""

    def read(key: str) -> tuple[list[str], str]:
        stored = far.remote.read(record_key(key))
        if stored is None:  # removed since it was listed
            return [], ""
        document, fault = parse_record(key, stored.data)
        if document is None:
            return [], fault
        return [digest for _, digest, _ in document["entries"]], ""

    read_all = far.each(read, sorted(list_keys(far)))
    return [(key, entries, fault) for key, (entries, fault) in read_all]


def _hash(far: FarStore, digest: str) -> str:
    sha = hashlib.sha256()
    for chunk in far.remote.stream(blob_key(digest)):
        sha.update(chunk)
    return f"sha256:{sha.hexdigest()}"


def _fault(code: str, digest: str, why: str, users: dict[str, list[str]]) -> FarFault:
    return FarFault(
        code=code,
        message=f"{why}: {digest}",
        object_key=blob_key(digest),
        keys=tuple(users.get(digest, ())),
    )


def repair_far(far: FarStore, faults: list[FarFault]) -> None:
    """
    Remove what is wrong and every record that needs it; builds make it again.

    Records go first, so that nobody finds one whose files are being removed.

    Raises:
        RemoteFailed: The store refuses.
    """
    doomed = {record_key(key) for fault in faults for key in fault.keys}
    far.each(far.remote.remove, sorted(doomed))
    far.each(far.remote.remove, sorted({f.object_key for f in faults} - doomed))
