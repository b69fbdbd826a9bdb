"""
The calibration stage: bring the planned files of a data set into `job.out`.

Each byte is checked against the digest in the plan, so the quantizer, which gets them
as an input, needs neither the network nor a credential, nor the user's file to stay as
it was.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid
from lmi_build.sources.copy_files import copy_checked, disk_errors, reading, safe_child
from lmi_build.sources.download import download_all
from lmi_build.sources.fetch import Progress, refuse_offline
from lmi_build.sources.selection import check_name
from lmi_build.values.model import FileFact
from lmi_build.values.settings import settings_from_environ

if TYPE_CHECKING:
    from lmi_build.events import Emit
    from lmi_build.sources.download import Remote
    from lmi_build.spi import Job


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out`.

    Args:
        job: `params` as `dataset.dataset_stage_params` made them, `settings` as
            `dataset.dataset_settings` did.
        emit: Told of bytes.

    Raises:
        SourceInvalid: `calibration.changed`: it is not what was planned.
        RemoteFailed: The hub or S3 refused or vanished.
        DoesNotFit: `source.disk-full`.
    """
    rows: Any = job.params["files"]
    names: Any = job.settings["names"]
    source = str(job.settings["source"])
    files = [
        FileFact(path=check_name(path, source="the plan"), size=size, digest=digest)
        for path, digest, size in rows
    ]
    total = sum(file.size for file in files)
    progress = Progress(emit, stage=job.stage, total=total)
    with disk_errors(f"the {total:,} bytes of `{source}`"):
        if job.settings["kind"] == "file":
            _copy(Path(str(job.settings["location"])), files[0], job, progress)
            return
        refuse_offline(job, source)
        remote = _remote(job)
        wanted = [
            FileFact(
                path=check_name(str(name), source="the plan"),
                size=file.size,
                digest=file.digest,
            )
            for name, file in zip(names, files, strict=True)
        ]
        folder = job.state / "download"
        for file in wanted:
            safe_child(folder, file.path).parent.mkdir(parents=True, exist_ok=True)
        download_all(remote, wanted, folder, on_bytes=progress.add)
        for file, stored in zip(wanted, files, strict=True):
            target = safe_child(job.out, stored.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            safe_child(folder, file.path).replace(target)


def _copy(source: Path, file: FileFact, job: Job, progress: Progress) -> None:
    try:
        with reading(source):
            copy_checked(
                source,
                safe_child(job.out, file.path),
                digest=file.digest,
                size=file.size,
                on_bytes=progress.add,
            )
    except SourceInvalid as error:
        raise SourceInvalid(
            f"the calibration file `{source}` is not the one of the plan:"
            f" {error.message}",
            code="calibration.changed",
            hints=(
                "run the build again, so that it plans with the file as it is now",
                "nothing is lost: every finished stage is kept",
            ),
        ) from error


def _remote(job: Job) -> Remote:
    settings = settings_from_environ(os.environ)
    location = str(job.settings["location"])
    if job.settings["kind"] == "s3":
        from lmi_build.sources.s3 import S3Remote

        return S3Remote(location, settings=settings)
    from lmi_build.sources.hub_http import HubRemote

    return HubRemote(
        location,
        revision=str(job.settings["revision"]),
        endpoint=str(job.settings["endpoint"]),
        token=settings.hf_token,
        repo_type="dataset",
    )
