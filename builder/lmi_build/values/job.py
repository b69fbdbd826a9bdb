"""
What one job builds: the document that rides in its input channel.

A job carries four small files in the channel `job`: this document as `job.json`, the
plan as `plan.json` (what `plan --out` writes), the package's own wheel and the script
that starts it. Everything large is in the shared store, by key.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue

JOB_SCHEMA = "lmi-build/job/v1"
RESULT_SCHEMA = "lmi-build/job-result/v1"
PROCESSING = "processing"
TRAINING = "training"
KINDS = (PROCESSING, TRAINING)
# The files of the channel `job`, by what they are.
JOB_FILE = "job.json"
PLAN_FILE = "plan.json"
ENTRY_FILE = "sagemaker_entry.sh"
# Wheels of the user's own with their hashes, where the job has any.
WHEELS_FILE = "wheels.txt"
# Variables that stages read secrets from.
SECRET_VARIABLES = ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobDocument:
    """
    What a job is told.

    Args:
        name: The job's name in SageMaker.
        kind: Of `KINDS`.
        stages: Keys to build, in the plan's order; what they need is in the store.
        store: `s3://bucket/prefix` of the shared store; empty where the job may not
            reach S3 and its store comes and goes by channels.
        wheel: File name of the package's wheel.
        region: AWS region; None takes the container's.
        endpoint_url: Another S3 server than AWS's.
        num_hosts: Hosts that share the stages.
        publish: Artifact's name to the `publish` section of its recipe as JSON; the
            job publishes those that are complete when it ends.
        secrets: Variable to reference: `secretsmanager:NAME-or-ARN`, with `#key` for
            one key of a JSON secret, or `ssm:/parameter`.
        max_runtime_seconds: When SageMaker stops the job.
        lease_seconds: How long a host that says nothing keeps a stage from others;
            None takes the store's own.
    """

    name: str
    kind: str
    stages: tuple[Digest, ...]
    store: str
    wheel: str
    region: str | None = None
    endpoint_url: str | None = None
    num_hosts: int = 1
    publish: Mapping[str, Mapping[str, JSONValue]] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    max_runtime_seconds: int = 86400
    lease_seconds: float | None = None


def job_to_json(document: JobDocument) -> dict[str, Any]:
    """The document as JSON."""
    return {"schema": JOB_SCHEMA, **asdict(document)}


def job_from_json(text: bytes) -> JobDocument:
    """
    Read what `job_to_json` wrote.

    Raises:
        ValueError: It is not such a document; the message says what is wrong.
    """
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.pop("schema", None) != JOB_SCHEMA:
            raise ValueError(f"its schema is not {JOB_SCHEMA}")
        stages = tuple(Digest(key) for key in fields.pop("stages"))
        document = JobDocument(**fields, stages=stages)
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks a part ({error})") from error
    if document.kind not in KINDS:
        raise ValueError(f"its kind is {document.kind!r}, not one of {KINDS}")
    return document


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """
    How a job ended, in `jobs/<name>/<host>.json` of the store.

    Args:
        name: The job's name.
        host: Which of its hosts wrote this.
        ok: Whether every stage it was told to build is in the store.
        exit_code: The process's.
        code: Code of the error; empty where there was none.
        message: What went wrong, or what was built; no secrets.
        hints: What to do about it.
        stages: Rows of name, key, cached, seconds, out_bytes.
        artifacts: Rows of name, manifest_digest, uri (empty where not published).
        tools: Versions that the container has of every tool that the plan names.
    """

    name: str
    host: str
    ok: bool
    exit_code: int
    code: str = ""
    message: str = ""
    hints: tuple[str, ...] = ()
    stages: tuple[Mapping[str, JSONValue], ...] = ()
    artifacts: tuple[Mapping[str, JSONValue], ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)


def result_to_json(result: JobResult) -> dict[str, Any]:
    """The result as JSON."""
    return {"schema": RESULT_SCHEMA, **asdict(result)}


def result_from_json(text: bytes) -> JobResult:
    """
    Read what `result_to_json` wrote.

    Raises:
        ValueError: It is not such a document.
    """
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.pop("schema", None) != RESULT_SCHEMA:
            raise ValueError(f"its schema is not {RESULT_SCHEMA}")
        for name in ("hints", "stages", "artifacts"):
            fields[name] = tuple(fields[name])
        return JobResult(**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks a part ({error})") from error
