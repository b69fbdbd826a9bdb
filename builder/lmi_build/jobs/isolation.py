"""
The shared store of jobs without a network: a manifest before, an output after.

SageMaker itself carries the results: into the job by a manifest that lists records and
blobs, out of it by an output with the store's layout. What comes out is held against
its digests here before others can find it.
"""

from __future__ import annotations

import json
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from lmi_build.jobs.shared import open_prefix
from lmi_build.remote.s3_place import S3Place
from lmi_build.store.far import blob_key, record_key
from lmi_build.store.record import parse_record, result_of
from lmi_build.store.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lmi_build.digest import Digest
    from lmi_build.jobs.service import JobState
    from lmi_build.jobs.shared import SharedStore
    from lmi_build.jobs.submission import SubmittedJob
    from lmi_build.store.store import Store
    from lmi_build.values.manifest import FileEntry
    from lmi_build.values.settings import Settings

MANIFEST_FILE = "store.manifest"


class Uploaded(S3Place):
    """
    What SageMaker uploaded.

    Its objects carry no digest of ours. A length is enough to look for them, since
    their bytes are held against their names when they are fetched.
    """

    def holds(self, key: str, entry: FileEntry) -> bool:
        """Whether the object is there with this length."""
        return self.listing(key).get("") == entry.size


def moved_request(job: SubmittedJob, name: str, store: str) -> dict[str, Any]:
    """A job's request with what is the job's own in the folder of an attempt."""
    old, new = f"{store}/jobs/{job.name}", f"{store}/jobs/{name}"

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [moved(item) for item in value]
        if value == old or (isinstance(value, str) and value.startswith(f"{old}/")):
            return new + value[len(old) :]
        return value

    found: dict[str, Any] = moved(dict(job.request))
    return found


def store_manifest(shared: SharedStore, keys: Iterable[Digest]) -> bytes:
    """
    What SageMaker reads to bring results into a job: a prefix and what is below it.

    Args:
        shared: It holds the result of every key.
        keys: What the job needs.

    Source:
        S3DataSource, `S3DataType`, of the API reference.
    """
    rows: dict[str, None] = {}
    for key in keys:
        record = record_key(key)
        stored = shared.place.read(record)
        document, _ = parse_record(key, stored.data if stored else b"")
        if document is not None:
            rows |= {blob_key(e.digest): None for e in result_of(document).entries}
            rows[record] = None
    return json.dumps([{"prefix": f"{shared.uri}/"}, *rows]).encode()


def put_manifest(shared: SharedStore, job: SubmittedJob, name: str) -> None:
    """Write the manifest that an attempt's request names."""
    data = store_manifest(shared, job.inputs)
    key = f"jobs/{name}/{MANIFEST_FILE}"
    if not shared.place.create(key, data):
        there = shared.place.read(key)
        if there is not None and there.data != data:
            shared.place.swap(key, data, tag=there.tag)


def bring_results(
    job: SubmittedJob,
    state: JobState,
    *,
    shared: SharedStore,
    store: Store,
    settings: Settings,
    got: Callable[[int], None] = lambda _num_bytes: None,
) -> list[Digest]:
    """
    Give the shared store what a job without network left.

    Every file passes through the local store, where its bytes are held against its
    name; then it is shared as what was built here is.

    Args:
        job: As submitted.
        state: As it ended, well or not.
        shared: Where results belong.
        store: The local store, with the shared one behind it.
        settings: Credentials.
        got: Told of bytes as they come.

    Returns:
        Keys of the results that are there now.

    Raises:
        RemoteFailed: S3 refuses, or what the job left is not what its name says.
    """
    outputs = [uri for name, uri in state.outputs.items() if name in {"store", "model"}]
    found = []
    for uri in outputs:
        with closing(open_prefix(uri, settings)) as place:
            base = _store_below(place)
        if base is None:
            continue
        at = f"{uri.rstrip('/')}/{base}"
        left = TieredStore(
            store.root, partial(open_prefix, at, settings, kind=Uploaded)
        )
        with closing(left):
            for key in shared.missing(job.keys):
                result = left.lookup(key)
                if result is None:
                    continue
                left.bring([result], got)
                store.share(result)
                found.append(key)
    return found


def _store_below(place: S3Place) -> str | None:
    """Where below an output a store's layout begins; None where there is none."""
    for key in place.listing(""):
        head, found, _ = key.rpartition("actions/")
        if found and (not head or head.endswith("/")):
            return head
    return None
