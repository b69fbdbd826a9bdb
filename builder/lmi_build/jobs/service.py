"""SageMaker's two kinds of job behind one set of calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmi_build.errors import RemoteFailed
from lmi_build.jobs.faults import explain, explained, is_absent, says
from lmi_build.remote.aws import make_session
from lmi_build.values.job import KINDS, PROCESSING, TRAINING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from lmi_build.values.settings import Settings

IN_PROGRESS = "InProgress"
COMPLETED = "Completed"
FAILED = "Failed"
STOPPED = "Stopped"
ENDED = frozenset({COMPLETED, FAILED, STOPPED})
# What stands for a job's name in the names of calls and fields.
_WORD = {PROCESSING: "processing_job", TRAINING: "training_job"}
_FIELD = {PROCESSING: "ProcessingJob", TRAINING: "TrainingJob"}
_SETTINGS_ENDPOINTS = {
    "sagemaker": "AWS_ENDPOINT_URL_SAGEMAKER",
    "logs": "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """
    How often is tried and asked.

    Args:
        attempts: Of one call, the first included; the waits between them adapt to
            what the service says.
        timeout_seconds: For a connection, and for an answer.
        poll_seconds: Between two looks at a job, at first.
        slowest_poll_seconds: And in the end, where nothing happens.
    """

    attempts: int = 8
    timeout_seconds: float = 30
    poll_seconds: float = 3
    slowest_poll_seconds: float = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """
    Where jobs run.

    Args:
        sagemaker: boto3's client.
        logs: boto3's client of CloudWatch Logs.
        region: Where both are.
        partition: Such as `aws`, `aws-cn`, `aws-us-gov`.
        patience: How often is tried and asked.
    """

    sagemaker: Any
    logs: Any
    region: str
    partition: str
    patience: Patience = field(default_factory=Patience)

    def close(self) -> None:
        """Give connections back."""
        self.sagemaker.close()
        self.logs.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """
    What the service says of one job.

    Args:
        name: Its name.
        kind: Of `KINDS`.
        arn: Its ARN.
        status: The service's word, such as `InProgress`.
        detail: More of it, such as `Downloading`; only training jobs have it.
        exit_message: What the container left, of processing jobs.
        failure_reason: Why it failed, as the service sees it.
        created: When it was asked for.
        started: When instances were there; None before.
        ended: When it ended; None before.
        instance: Its instances' type.
        num_hosts: How many.
        channel_uri: Where its channel `job` lies.
        outputs: Name of an output to where it goes.
    """

    name: str
    kind: str
    arn: str
    status: str
    detail: str = ""
    exit_message: str = ""
    failure_reason: str = ""
    created: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    instance: str = ""
    num_hosts: int = 1
    channel_uri: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether its state will not change any more."""
        return self.status in ENDED

    @property
    def cause(self) -> str:
        """Why it ended badly: its own words before the service's."""
        return self.exit_message or self.failure_reason


def connect(
    settings: Settings, *, region: str | None = None, patience: Patience | None = None
) -> Service:
    """
    Clients that know how, and have asked nothing yet.

    Args:
        settings: Credentials and endpoints.
        region: Before the settings' own.
        patience: None takes the usual.

    Raises:
        RemoteFailed: `remote.offline`, `remote.no-credentials` (unknown profile).
        UsageInvalid: `job.no-region`.
    """
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    if settings.offline:
        raise RemoteFailed(
            "jobs run on SageMaker, and the network is switched off",
            code="remote.offline",
            hints=("leave out --offline, or try `lmi-build job simulate`",),
        )
    patience = patience or Patience()
    aws = settings.secrets.get("aws", {})
    config = Config(
        retries={"mode": "adaptive", "total_max_attempts": patience.attempts},
        connect_timeout=patience.timeout_seconds,
        read_timeout=patience.timeout_seconds,
    )
    try:
        session = make_session(settings, region=region)
        clients = {
            name: session.client(
                name,
                config=config,
                endpoint_url=aws.get(variable) or aws.get("AWS_ENDPOINT_URL") or None,
            )
            for name, variable in _SETTINGS_ENDPOINTS.items()
        }
        found = session.region_name
        partition = session.get_partition_for_region(found)
    except (BotoCoreError, ValueError) as error:
        raise explain(error, doing="connecting to SageMaker", region=region) from error
    return Service(
        sagemaker=clients["sagemaker"],
        logs=clients["logs"],
        region=found,
        partition=partition,
        patience=patience,
    )


def describe(service: Service, kind: str, name: str) -> JobState | None:
    """
    What a job is doing; None where there is no such job.

    Raises:
        RemoteFailed: The service refuses or vanishes.
    """
    from botocore.exceptions import ClientError

    call = getattr(service.sagemaker, f"describe_{_WORD[kind]}")
    with explained(f"asking for job {name}", service.region):
        try:
            found = call(**{f"{_FIELD[kind]}Name": name})
        except ClientError as error:
            if is_absent(error):
                return None
            raise
    return _state(kind, found)


def find(service: Service, name: str) -> JobState | None:
    """A job of either kind by its name."""
    states = (describe(service, kind, name) for kind in KINDS)
    return next((state for state in states if state is not None), None)


def create(service: Service, kind: str, request: Mapping[str, Any]) -> str:
    """
    Start a job; returns its ARN.

    Raises:
        RemoteFailed: `job.exists` where a job has the name; else as `explain` says.
    """
    name = request[f"{_FIELD[kind]}Name"]
    call = getattr(service.sagemaker, f"create_{_WORD[kind]}")
    with explained(f"creating {kind} job {name}", service.region):
        return str(call(**request)[f"{_FIELD[kind]}Arn"])


def stop(service: Service, kind: str, name: str) -> None:
    """
    Ask a job to stop; it gets time to save its state.

    Raises:
        RemoteFailed: As `explain` says; a job that has ended is none.
    """
    from botocore.exceptions import ClientError

    call = getattr(service.sagemaker, f"stop_{_WORD[kind]}")
    with explained(f"stopping job {name}", service.region):
        try:
            call(**{f"{_FIELD[kind]}Name": name})
        except ClientError as error:
            if not says(error, "is in status", "cannot be stopped"):
                raise


def named(kind: str, request: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A request under another name."""
    return {**request, f"{_FIELD[kind]}Name": name}


def name_of(kind: str, request: Mapping[str, Any]) -> str:
    """The name in a request."""
    return str(request[f"{_FIELD[kind]}Name"])


def list_summaries(
    service: Service, kind: str, *, name_contains: str, limit: int
) -> list[JobState]:
    """The newest jobs of one kind, without what only `describe` says."""
    pages = service.sagemaker.get_paginator(f"list_{_WORD[kind]}s").paginate(
        # The API takes no empty word.
        **({"NameContains": name_contains} if name_contains else {}),
        SortBy="CreationTime",
        SortOrder="Descending",
        PaginationConfig={"MaxItems": limit, "PageSize": min(limit, 100)},
    )
    found = []
    with explained(f"listing {kind} jobs", service.region):
        for page in pages:
            found += [_state(kind, row) for row in page[f"{_FIELD[kind]}Summaries"]]
    return found


def channel_of(kind: str, found: Mapping[str, Any]) -> str:
    """Where the channel `job` of a request or of a description lies."""
    if kind == PROCESSING:
        inputs = {
            row.get("InputName"): row.get("S3Input", {}).get("S3Uri", "")
            for row in found.get("ProcessingInputs") or ()
        }
    else:
        inputs = {
            row.get("ChannelName"): row.get("DataSource", {})
            .get("S3DataSource", {})
            .get("S3Uri", "")
            for row in found.get("InputDataConfig") or ()
        }
    return str(inputs.get("job", ""))


def _state(kind: str, found: Mapping[str, Any]) -> JobState:
    word = _FIELD[kind]
    if kind == PROCESSING:
        resources = found.get("ProcessingResources", {}).get("ClusterConfig", {})
        outputs = {
            row.get("OutputName"): row.get("S3Output", {}).get("S3Uri", "")
            for row in (found.get("ProcessingOutputConfig") or {}).get("Outputs", ())
        }
    else:
        resources = found.get("ResourceConfig", {})
        uri = (found.get("OutputDataConfig") or {}).get("S3OutputPath", "")
        outputs = {"model": uri} if uri else {}
    return JobState(
        name=found[f"{word}Name"],
        kind=kind,
        arn=found[f"{word}Arn"],
        status=found[f"{word}Status"],
        detail=found.get("SecondaryStatus", ""),
        exit_message=found.get("ExitMessage") or "",
        failure_reason=found.get("FailureReason") or "",
        created=found.get("CreationTime"),
        started=found.get("ProcessingStartTime") or found.get("TrainingStartTime"),
        ended=found.get("ProcessingEndTime") or found.get("TrainingEndTime"),
        instance=resources.get("InstanceType", ""),
        num_hosts=resources.get("InstanceCount", 1),
        channel_uri=channel_of(kind, found),
        outputs=outputs,
    )
