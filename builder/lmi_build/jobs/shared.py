"""The shared store, as the one who submits and watches jobs sees it."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lmi_build.remote.access import StoreAccess
from lmi_build.remote.s3_place import S3Place
from lmi_build.store.far import FarStore
from lmi_build.values.job import result_from_json
from lmi_build.values.publish import Transfer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lmi_build.digest import Digest
    from lmi_build.values.job import JobResult
    from lmi_build.values.settings import Settings

INPUTS = "inputs/"
# Output of a job, and the folder that it goes to.
REPORT = "report"


class SharedStore:
    """
    A store's prefix in S3.

    Args:
        uri: `s3://bucket/prefix`.
        place: Its objects.
    """

    def __init__(self, uri: str, place: S3Place) -> None:
        self.uri = uri
        self.place = place
        self._far = FarStore(place)
        self._whole: set[Digest] = set()

    def has(self, key: Digest) -> bool:
        """Whether the result of a key is there, whole."""
        if key in self._whole:
            return True
        found = self._far.find(key, lambda _entry: False)
        if found.result is not None:
            self._whole.add(key)
        return found.result is not None

    def missing(self, keys: Iterable[Digest]) -> list[Digest]:
        """Those keys that have no result."""
        rows = self._far.each(self.has, list(keys))
        return [key for key, held in rows if not held]

    def results(self, name: str) -> tuple[JobResult, ...]:
        """
        What the hosts of a job left when they ended, in order of host.

        A host that could not write to the store left it in its output, which SageMaker
        uploads.
        """
        base = f"jobs/{name}/"
        there = self.place.listing(base)
        found: dict[str, JobResult] = {}
        for folder in ("", f"{REPORT}/"):
            for key in sorted(there):
                host = key.removeprefix(folder)
                if not key.startswith(folder) or "/" in host or host in found:
                    continue
                stored = self.place.read(base + key)
                if stored is None or not host.endswith(".json"):
                    continue
                # Other documents of the job lie there too.
                with suppress(ValueError):
                    found[host] = result_from_json(stored.data)
        return tuple(found[host] for host in sorted(found))


@contextmanager
def open_shared(
    uri: str,
    settings: Settings,
    *,
    region: str | None = None,
    kms_key_id: str | None = None,
    transfer: Transfer | None = None,
) -> Iterator[SharedStore]:
    """
    The store at a URI, its connections given back at the end.

    Args:
        uri: `s3://bucket/prefix`.
        settings: Credentials and endpoint.
        region: The bucket's.
        kms_key_id: For what is written.
        transfer: Patience; None takes the usual.
    """
    place = open_prefix(
        uri, settings, region=region, kms_key_id=kms_key_id, transfer=transfer
    )
    try:
        yield SharedStore(uri, place)
    finally:
        place.close()


def open_prefix(
    uri: str,
    settings: Settings,
    *,
    region: str | None = None,
    kms_key_id: str | None = None,
    transfer: Transfer | None = None,
    kind: type[S3Place] = S3Place,
) -> S3Place:
    """The objects below a URI; close it at the end."""
    parts = urlsplit(uri)
    prefix = parts.path.strip("/")
    return kind(
        parts.netloc,
        f"{prefix}/" if prefix else "",
        access=StoreAccess(to=uri, region=region, kms_key_id=kms_key_id),
        settings=settings,
        transfer=transfer or Transfer(),
        exclusive=True,
    )


def store_of_channel(uri: str) -> str:
    """
    The shared store that a job's channel lies in; empty where it is in none.

    Args:
        uri: `s3://bucket/prefix/inputs/<64 hex>`, with or without a slash.
    """
    head, _, tail = uri.rstrip("/").rpartition(f"/{INPUTS}")
    return head if tail and "/" not in tail else ""
