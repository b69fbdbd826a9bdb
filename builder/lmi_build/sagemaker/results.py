"""Where the end of a job is written down: its message, its report, the shared store."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lmi_build.errors import LmiBuildError, is_disk_full
from lmi_build.sagemaker.message import message_bytes, write_message
from lmi_build.sagemaker.places import REPORT_OUTPUT, STORE_CHANNEL
from lmi_build.store.files import write_atomic
from lmi_build.values.job import result_to_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.sagemaker.places import Places
    from lmi_build.sagemaker.watch import Watch
    from lmi_build.store.bucket import Remote
    from lmi_build.values.job import JobResult


def result_key(name: str, host: str) -> str:
    """Where a host's result lies in the shared store."""
    return f"jobs/{name}/{host}.json"


def encode(result: JobResult) -> bytes:
    """The result as a file."""
    return json.dumps(result_to_json(result), indent=1).encode()


def end_message(watch: Watch, result: JobResult) -> None:
    """
    Write the job's last word, on a full disk as well.

    The file has been there since the start, so its block is ours: overwriting it in
    place needs no room.
    """
    path = watch.places.message(ok=result.ok)
    if path is None:
        # A failure that was foretold did not come.
        foretold = watch.places.message(ok=False)
        if foretold is not None:
            foretold.unlink(missing_ok=True)
        return
    try:
        write_message(watch.places, result, watch.redactor)
    except OSError as error:
        if not is_disk_full(error):
            raise
        data = message_bytes(result, watch.redactor)
        with path.open("r+b", buffering=0) as stream:
            stream.write(data)
            stream.truncate()


def write_report(watch: Watch, result: JobResult, logs: Path | None) -> None:
    """Leave the result and the stages' logs in the output `report`."""
    folder = watch.places.output(REPORT_OUTPUT)
    write_atomic(folder / f"{result.host}.json", encode(result))
    for path in sorted(logs.rglob("*.*")) if logs else []:
        if path.is_file():
            target = folder / result.host / path.relative_to(logs or path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def put_result(remote: Remote, result: JobResult) -> None:
    """
    Write the result into the shared store, over that of an earlier attempt.

    Raises:
        RemoteFailed: The store refuses.
    """
    key = result_key(result.name, result.host)
    there = remote.read(key)
    remote.put(key, encode(result), tag=there.tag if there is not None else "")


def materialise_links(places: Places) -> None:
    """Replace every link in an output by what it points to; uploads follow none."""
    roots = [places.output(name) for name in (REPORT_OUTPUT, STORE_CHANNEL)]
    found = [path for root in roots if root.is_dir() for path in root.rglob("*")]
    for path in sorted(found):
        if not path.is_symlink():
            continue
        target = path.resolve()
        path.unlink()
        if target.is_dir():
            shutil.copytree(target, path)
        elif target.is_file():
            shutil.copyfile(target, path)


@contextmanager
def trying(watch: Watch, doing: str) -> Iterator[None]:
    """Let a report that cannot be written not hide how the job ended."""
    try:
        yield
    except (OSError, LmiBuildError) as error:
        with suppress(OSError):
            watch.say(f"warning: {doing} failed: {error}")
