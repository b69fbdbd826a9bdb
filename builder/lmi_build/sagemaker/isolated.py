"""
The shared store of a job that may not reach S3: a channel before, an output after.

Both have the shared store's layout, so that SageMaker's own copies are all it takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.digest import digest_file
from lmi_build.errors import StoreCorrupt, UsageInvalid
from lmi_build.store import files
from lmi_build.store.record import parse_record, result_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmi_build.store.store import Store
    from lmi_build.values.result import Entry
    from lmi_build.values.stage import Stage


def refuse_many_hosts(hosts: Sequence[str]) -> None:
    """
    Hosts that cannot reach S3 share nothing.

    Raises:
        UsageInvalid: `job.isolated-hosts`.
    """
    if len(hosts) > 1:
        raise UsageInvalid(
            f"{len(hosts)} hosts without a network cannot share stages",
            code="job.isolated-hosts",
            hints=("set `job.num_hosts: 1`, or leave out `job.network_isolation`",),
        )


def take_in(channel: Path, store: Store) -> set[str]:
    """
    Make what lies in the channel results of the local store.

    Args:
        channel: Folder with `actions` and `blobs`; it may be absent.
        store: The local store.

    Returns:
        What came in, as paths relative to the layout.

    Raises:
        StoreCorrupt: `job.damaged-store`: a record or a file is not what its name says.
        StoreUnusable: The local store cannot be written.
    """
    came = {
        path.relative_to(channel).as_posix()
        for path in channel.rglob("*")
        if path.is_file()
    }
    with files.explaining("taking results in", store.root):
        for path in sorted((channel / "actions").glob("*/*.json")):
            key = f"sha256:{path.stem}"
            document, fault = parse_record(key, path.read_bytes())
            if document is None:
                raise _damaged(path, fault)
            for entry in result_of(document).entries:
                _take_blob(channel, entry, store)
            files.write_atomic(store.record_path(key), path.read_bytes())
    return came


def _take_blob(channel: Path, entry: Entry, store: Store) -> None:
    blob = store.blob_path(entry.digest)
    if blob.exists():
        return
    source = channel / blob.relative_to(store.root)
    if not source.is_file():
        raise _damaged(source, "it is missing")
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f".{blob.name}.taken")
    partial.unlink(missing_ok=True)
    files.place(source, partial)
    found = digest_file(partial)
    if found != entry.digest:
        partial.unlink()
        raise _damaged(source, f"its content is {found}")
    files.sync_file(partial)
    files.make_blob(partial, blob)


def give_out(
    stages: Sequence[Stage], store: Store, output: Path, came: set[str]
) -> None:
    """
    Lay what is new into the output: blobs, then records.

    Args:
        stages: Those of the job.
        store: The local store.
        output: Folder that SageMaker uploads.
        came: From `take_in`; it is there already.

    Raises:
        StoreUnusable: The output cannot be written.
        DoesNotFit: `store.disk-full`.
    """
    with files.explaining("laying results out", output):
        for stage in stages:
            result = store.lookup(stage.key)
            if result is None:
                continue
            names = [store.blob_path(entry.digest) for entry in result.entries]
            for path in [*names, store.record_path(stage.key)]:
                _give(path, store.root, output, came)


def _give(path: Path, root: Path, output: Path, came: set[str]) -> None:
    name = path.relative_to(root).as_posix()
    if name not in came and not (output / name).exists():
        files.place(path, output / name)


def _damaged(path: Path, why: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"{path} came in damaged: {why}",
        code="job.damaged-store",
        hints=("run `lmi-build cache verify --remote --repair`, then submit again",),
    )
