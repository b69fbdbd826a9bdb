"""
Content-addressed folders in S3 that become channels of jobs.

A folder is named by what it holds, so it is made once, and a job's request, which names
the folder, is the same for the same content. Large files (the wheel, the plan) are the
same in many folders: their bytes are sent once, as a blob of the shared store, and
copied inside S3.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.digest import Digest, digest_bytes, digest_tree
from lmi_build.errors import StoreCorrupt
from lmi_build.store.record import hex_of
from lmi_build.units import KiB
from lmi_build.values.manifest import FileEntry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.remote.s3_place import S3Place

# A copy inside S3 costs a request more than sending a smaller file.
_SHARED_BYTES = 64 * KiB


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """
    What an upload cost.

    Args:
        sent_bytes: That left this machine.
        kept_bytes: That were there already.
        num_sent: Files that left this machine.
    """

    sent_bytes: int = 0
    kept_bytes: int = 0
    num_sent: int = 0

    def __add__(self, other: Sent) -> Sent:
        """Two uploads as one."""
        return Sent(
            sent_bytes=self.sent_bytes + other.sent_bytes,
            kept_bytes=self.kept_bytes + other.kept_bytes,
            num_sent=self.num_sent + other.num_sent,
        )


def folder_digest(files: Mapping[str, bytes]) -> Digest:
    """The name of a folder by its files."""
    return digest_tree(
        (name, digest_bytes(data), len(data)) for name, data in files.items()
    )


def folder_key(files: Mapping[str, bytes]) -> str:
    """Where a folder lies below the store's prefix, with a slash at its end."""
    return key_of(folder_digest(files))


def key_of(digest: Digest) -> str:
    """The same of a folder whose name by content is known."""
    return f"inputs/{hex_of(digest)}/"


def upload_folder(place: S3Place, files: Mapping[str, bytes]) -> Sent:
    """
    Make a folder, sending only what is not there.

    Args:
        place: The shared store's prefix.
        files: Name to content.

    Raises:
        RemoteFailed: S3 refuses or vanishes.
        StoreCorrupt: `job.foreign-input`: something else lies at the folder's place.
    """
    base = folder_key(files)
    total = Sent()
    for name, data in sorted(files.items()):
        total += _put(place, base + name, data)
    return total


def _put(place: S3Place, key: str, data: bytes) -> Sent:
    kept = Sent(kept_bytes=len(data))
    entry = FileEntry(path=key, size=len(data), digest=digest_bytes(data))
    if place.holds(key, entry):
        return kept
    if len(data) < _SHARED_BYTES:
        return _create(place, key, data, entry)
    blob = f"blobs/{entry.sha256[:2]}/{entry.sha256}"
    sent = kept if place.holds(blob, entry) else _create(place, blob, data, entry)
    place.copy(blob, key)
    return sent


def _create(place: S3Place, key: str, data: bytes, entry: FileEntry) -> Sent:
    if place.create(key, data):
        return Sent(sent_bytes=len(data), num_sent=1)
    # Somebody came first; their bytes have to be these.
    there = place.read(key)
    found = hashlib.sha256(there.data).hexdigest() if there else "nothing"
    if found != entry.sha256:
        raise StoreCorrupt(
            f"{place.uri(key)} holds sha256:{found}, not the content that it is"
            " named by",
            code="job.foreign-input",
            hints=(f"look at it, then remove it: aws s3 rm {place.uri(key)}",),
        )
    return Sent(sent_bytes=len(data), num_sent=1)
