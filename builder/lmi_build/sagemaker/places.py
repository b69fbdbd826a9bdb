"""
Where SageMaker puts things in a container, for both kinds of job.

Source: "How Amazon SageMaker Processing Configures Input and Output For Your
Processing Container" and "How Amazon SageMaker Provides Training Information" of the
developer guide.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.errors import UsageInvalid
from lmi_build.values.job import JOB_FILE, PROCESSING, job_from_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.values.job import JobDocument

ML_ROOT = Path("/opt/ml")
# Overrides `/opt/ml`, where no mount namespace can be had.
ROOT_VARIABLE = "LMI_BUILD_ML_ROOT"
# SageMaker keeps the first kilobyte.
MESSAGE_BYTES = 1024
JOB_CHANNEL = "job"
STORE_CHANNEL = "store"
REPORT_OUTPUT = "report"
# Job and host names become parts of keys and paths.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,127}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """
    The folders of one kind of job.

    Args:
        kind: `processing` or `training`.
        root: `/opt/ml`, or what stands for it.
    """

    kind: str
    root: Path

    @property
    def config(self) -> Path:
        """Where SageMaker says what the job is."""
        folder = "config" if self.kind == PROCESSING else "input/config"
        return self.root / folder

    def channel(self, name: str) -> Path:
        """An input's folder."""
        folder = "processing/input" if self.kind == PROCESSING else "input/data"
        return self.root / folder / name

    def output(self, name: str) -> Path:
        """An output's folder; what lies in it when the job ends is uploaded."""
        if self.kind == PROCESSING:
            return self.root / "processing" / "output" / name
        # What DescribeTrainingJob tells the place of is the model alone.
        folder = "model" if name == STORE_CHANNEL else "output/data"
        return self.root / folder / name

    @property
    def volume(self) -> Path:
        """A folder on the job's own volume, uploaded nowhere."""
        folder = "processing" if self.kind == PROCESSING else "input"
        return self.root / folder / "lmi-build"

    def message(self, *, ok: bool) -> Path | None:
        """The file that becomes ExitMessage or FailureReason; None where none does."""
        if self.kind == PROCESSING:
            return self.root / "output" / "message"
        return None if ok else self.root / "output" / "failure"


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """
    What SageMaker tells one container.

    Args:
        name: The job's name.
        host: This container's name.
        hosts: All of them.
        max_runtime_seconds: When the job is stopped.
    """

    name: str
    host: str
    hosts: tuple[str, ...]
    max_runtime_seconds: int

    @property
    def index(self) -> int:
        """Which of the hosts this is, from 0."""
        return self.hosts.index(self.host)


def find_places(root: Path) -> Places:
    """
    The places of the job that runs here, told by where its channel `job` lies.

    Raises:
        UsageInvalid: `job.no-channel`.
    """
    tried = [Places(kind=kind, root=root) for kind in (PROCESSING, "training")]
    for places in tried:
        if (places.channel(JOB_CHANNEL) / JOB_FILE).is_file():
            return places
    looked = " and ".join(str(places.channel(JOB_CHANNEL)) for places in tried)
    raise UsageInvalid(
        f"no {JOB_FILE} in {looked}",
        code="job.no-channel",
        hints=("start it with the request that `lmi-build job render` writes",),
    )


def read_document(places: Places) -> JobDocument:
    """
    What the job builds.

    Raises:
        UsageInvalid: `job.bad-document`.
    """
    path = places.channel(JOB_CHANNEL) / JOB_FILE
    try:
        return job_from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageInvalid(
            f"{path} is not a job of this version: {error}",
            code="job.bad-document",
            hints=("submit it again with this version of lmi-build",),
        ) from error


def read_told(
    places: Places, document: JobDocument, environ: Mapping[str, str]
) -> Told:
    """
    Read SageMaker's own files; they win over what the document says.

    Raises:
        UsageInvalid: `job.bad-config`: a file is missing or damaged.
    """
    resources = _read(places.config / "resourceconfig.json")
    name, limit = document.name, document.max_runtime_seconds
    if places.kind == PROCESSING:
        config = _read(places.config / "processingjobconfig.json")
        name = str(config.get("ProcessingJobName") or name)
        stopping = config.get("StoppingCondition") or {}
        limit = int(stopping.get("MaxRuntimeInSeconds") or limit)
    else:
        name = environ.get("TRAINING_JOB_NAME") or name
    host = str(resources.get("current_host", ""))
    hosts = tuple(str(one) for one in resources.get("hosts", ()))
    for word in (name, host):
        if not _NAME.fullmatch(word):
            raise _bad(places.config, f"`{word}` is not a name")
    if host not in hosts:
        raise _bad(places.config, f"`{host}` is not one of the hosts {hosts}")
    return Told(name=name, host=host, hosts=hosts, max_runtime_seconds=limit)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _bad(path, str(error)) from error
    if not isinstance(document, dict):
        raise _bad(path, "it is not an object")
    return document


def _bad(path: Path, why: str) -> UsageInvalid:
    return UsageInvalid(
        f"{path} is not what SageMaker writes: {why}",
        code="job.bad-config",
        hints=("run it as a SageMaker job, or with `lmi-build job simulate`",),
    )
