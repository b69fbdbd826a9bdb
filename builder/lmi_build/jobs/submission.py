"""Jobs with their requests, as they are submitted, kept in the store and watched."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping

SUBMISSION_SCHEMA = "lmi-build/job-submission/v1"
SUBMISSION_FILE = "submission.json"
# Of the API, for both kinds of job.
MAX_NAME_CHARS = 63
_AGAIN = "-try"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRef:
    """
    A stage that a job builds.

    Args:
        name: As in the plan.
        key: Its name by inputs.
    """

    name: str
    key: Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmittedJob:
    """
    One job.

    Args:
        name: Its name at the first attempt; later ones have a number behind it.
        kind: `processing` or `training`.
        request: What boto3 is called with.
        stages: What it builds, in the plan's order.
        inputs: Keys of other jobs, or of this machine, that it needs in the store.
        after: Names of the jobs that make them.
        instance: Type of each host.
        num_hosts: Hosts that share the stages.
        publishes: Whether it publishes artifacts when its stages are there.
        isolated: Whether it has no network; its store comes and goes by channels.
    """

    name: str
    kind: str
    request: Mapping[str, Any]
    stages: tuple[StageRef, ...]
    inputs: tuple[Digest, ...] = ()
    after: tuple[str, ...] = ()
    instance: str = ""
    num_hosts: int = 1
    publishes: bool = False
    isolated: bool = False

    @property
    def keys(self) -> tuple[Digest, ...]:
        """Keys of its stages."""
        return tuple(stage.key for stage in self.stages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """
    The jobs of one plan.

    Args:
        recipe: Name of the plan.
        store: `s3://bucket/prefix`.
        region: Where the jobs run.
        jobs: Each after those that it needs.
        max_jobs: At once.
        kms_key_id: For what is written to the store.
    """

    recipe: str
    store: str
    region: str
    jobs: tuple[SubmittedJob, ...]
    max_jobs: int = 4
    kms_key_id: str | None = None

    def job(self, name: str) -> SubmittedJob | None:
        """The job of a name, or of the name of one of its later attempts."""
        for job in self.jobs:
            if attempt_of(name, job.name) is not None:
                return job
        return None

    @property
    def stages(self) -> tuple[StageRef, ...]:
        """Every stage once, in the order of the jobs."""
        found = {stage.key: stage for job in self.jobs for stage in job.stages}
        return tuple(found.values())


def attempt_name(name: str, attempt: int) -> str:
    """The name of an attempt, from 1, within the API's length."""
    if attempt == 1:
        return name
    # A bare number would also be the name of the second job of one kind.
    end = f"{_AGAIN}{attempt}"
    return name[: MAX_NAME_CHARS - len(end)].rstrip("-") + end


def attempt_of(found: str, name: str) -> int | None:
    """Which attempt of a job a name is; None where it is none of it."""
    if found == name:
        return 1
    number = found.rpartition(_AGAIN)[2]
    if not number.isdecimal() or int(number) < 2:  # noqa: PLR2004 - the second attempt
        return None
    attempt = int(number)
    return attempt if attempt_name(name, attempt) == found else None


def submission_to_json(submission: Submission) -> bytes:
    """A submission as a document, the same bytes for the same one."""
    document = {"schema": SUBMISSION_SCHEMA, **asdict(submission)}
    return json.dumps(document, sort_keys=True, indent=1).encode()


def submission_from_json(text: bytes) -> Submission:
    """
    Read what `submission_to_json` wrote.

    Raises:
        ValueError: It is not such a document.
    """
    try:
        fields = json.loads(text)
        schema = fields.pop("schema", None) if isinstance(fields, dict) else None
        if schema != SUBMISSION_SCHEMA:
            raise ValueError(f"its schema is not {SUBMISSION_SCHEMA}")
        jobs = tuple(_job(row) for row in fields.pop("jobs"))
        return Submission(**fields, jobs=jobs)
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks a part ({error})") from error


def _job(row: dict[str, Any]) -> SubmittedJob:
    stages = tuple(
        StageRef(name=str(stage["name"]), key=Digest(stage["key"]))
        for stage in row.pop("stages")
    )
    inputs = tuple(Digest(key) for key in row.pop("inputs"))
    after = tuple(row.pop("after"))
    return SubmittedJob(**row, stages=stages, inputs=inputs, after=after)
