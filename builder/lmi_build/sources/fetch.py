"""
The fetch stage: make the canonical model folder in `job.out`.

Whatever the source, the result is safetensors weights, `config.json`, the tokenizer
and the licence, and every input byte was checked against the digest in the plan.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.errors import RemoteFailed, SourceInvalid
from lmi_build.events import StageProgress
from lmi_build.sources.copy_files import (
    copy_checked,
    disk_errors,
    hash_checked,
    reading,
    safe_child,
)
from lmi_build.sources.download import download_all
from lmi_build.sources.gguf_convert import convert_gguf
from lmi_build.sources.recast import recast_config, recast_index, recast_shard
from lmi_build.sources.selection import CONFIG, INDEX, MODULES, check_name
from lmi_build.values.model import FileFact
from lmi_build.values.settings import settings_from_environ

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.events import Emit
    from lmi_build.sources.download import Remote
    from lmi_build.spi import Job

_PROGRESS_STEPS = 100


class Progress:
    """Counts bytes over all files and threads; tells at most a hundred times."""

    def __init__(self, emit: Emit, *, stage: str, total: int) -> None:
        self._emit = emit
        self._stage = stage
        self._total = total
        self._done = 0
        self._told = -1
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Note `count` more bytes; negative when bytes are fetched again."""
        with self._lock:
            self._done += count
            self._tell()

    def set(self, done: int, total: int) -> None:
        """Replace both numbers."""
        with self._lock:
            self._done, self._total = done, total
            self._tell()

    def _tell(self) -> None:
        step = self._done * _PROGRESS_STEPS // max(self._total, 1)
        if step > self._told:
            self._told = step
            self._emit(
                StageProgress(
                    stage=self._stage,
                    done=min(self._done, self._total),
                    total=self._total,
                    unit="bytes",
                )
            )


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out`.

    Args:
        job: `params` as `resolve.fetch_stage_params` made them, `settings` as
            `resolve.fetch_settings` did.
        emit: Told of bytes.

    Raises:
        SourceInvalid: A file is not what was planned, or broken.
        RemoteFailed: The hub or S3 refused or vanished.
        DoesNotFit: `source.disk-full`.
    """
    files = _planned_files(job.params)
    total = sum(file.size for file in files)
    progress = Progress(emit, stage=job.stage, total=total)
    location = str(job.settings["location"])
    with disk_errors(f"the {total:,} bytes of `{location}`"):
        if job.params["kind"] == "folder":
            _place(Path(location), files, job, progress, keep_source=True)
            return
        if job.params["kind"] == "gguf" and not location.startswith("s3://"):
            _convert(Path(location), files[0], job, progress)
            return
        downloaded = _download(job, files, progress)
        progress = Progress(emit, stage=job.stage, total=total)
        if job.params["kind"] == "gguf":
            _convert(downloaded / files[0].path, files[0], job, progress)
        else:
            _place(downloaded, files, job, progress, keep_source=False)


def _planned_files(params: Mapping[str, Any]) -> list[FileFact]:
    return [
        FileFact(path=check_name(path, source="the plan"), size=size, digest=digest)
        for path, digest, size in params["files"]
    ]


def _place(
    source: Path,
    files: list[FileFact],
    job: Job,
    progress: Progress,
    *,
    keep_source: bool,
) -> None:
    """Bring files into `out`: copied or moved, weights cast when asked for."""
    dtype = str(job.params["dtype"])
    total = 0
    for file in files:
        origin = safe_child(source, file.path)
        target = safe_child(job.out, file.path)
        target.parent.mkdir(exist_ok=True)
        with reading(origin):
            if dtype != "keep" and file.path.endswith(".safetensors"):
                total += recast_shard(
                    origin,
                    target,
                    dtype=dtype,
                    digest=file.digest,
                    size=file.size,
                    on_bytes=progress.add,
                )
            elif keep_source:
                copy_checked(
                    origin,
                    target,
                    digest=file.digest,
                    size=file.size,
                    on_bytes=progress.add,
                )
            else:
                origin.replace(target)
    for file in files:
        if file.path.endswith(".json"):
            check_json(job.out / file.path, source=str(job.settings["location"]))
    if dtype != "keep":
        recast_config(job.out / CONFIG, dtype=dtype)
        if (job.out / INDEX).exists():
            recast_index(job.out / INDEX, total=total)


def check_json(path: Path, *, source: str) -> None:
    """
    Refuse a file that no reader after us could read.

    Raises:
        SourceInvalid: `source.bad-config`.
    """
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        what = f"is not JSON: {error}"
    else:
        wanted = list if path.name == MODULES else dict
        if isinstance(document, wanted):
            return
        what = f"is not a JSON {'array' if wanted is list else 'object'}"
    raise SourceInvalid(
        f"`{path.name}` of `{source}` {what}",
        code="source.bad-config",
        hints=("fetch the file again, or correct it",),
    )


def _convert(path: Path, file: FileFact, job: Job, progress: Progress) -> None:
    """Check a GGUF file against its digest, then rebuild the model from it."""
    with reading(path):
        hash_checked(path, digest=file.digest, size=file.size)
        convert_gguf(
            path, job.out, dtype=str(job.params["dtype"]), progress=progress.set
        )


def refuse_offline(job: Job, source: str) -> None:
    """
    Stop before the network is touched where it may not be.

    Raises:
        RemoteFailed: `source.offline`.
    """
    if job.settings.get("offline"):
        raise RemoteFailed(
            f"`{source}` is not in the store and offline mode forbids fetching it",
            code="source.offline",
            hints=("run once without `--offline`",),
        )


def _download(job: Job, files: list[FileFact], progress: Progress) -> Path:
    """Bring every file into `state`; what an earlier attempt left there is used."""
    location = str(job.settings["location"])
    refuse_offline(job, location)
    remote: Remote
    if location.startswith("s3://"):
        from lmi_build.sources.s3 import S3Remote

        remote = S3Remote(location, settings=settings_from_environ(os.environ))
    else:
        from lmi_build.sources.hub_http import HubRemote

        remote = HubRemote(
            location,
            revision=str(job.settings["revision"]),
            endpoint=str(job.settings["endpoint"]),
            token=settings_from_environ(os.environ).hf_token,
        )
    folder = job.state / "download"
    folder.mkdir(parents=True, exist_ok=True)
    download_all(remote, files, folder, on_bytes=progress.add)
    return folder
