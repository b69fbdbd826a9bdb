"""
SageMaker for tests, over real HTTP: moto's S3 and logs, and the service's own answers.

moto's jobs are complete at once, take a name twice and cannot be stopped, so those
operations are answered here, from what the service does: a name is taken once, a job
moves from one status to the next, and faults have the service's codes and words. The
fields of every answer are checked against botocore's model of the service.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from faulty_s3 import FaultyS3
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

REGION = "eu-west-1"
ACCOUNT = "123456789012"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDTEST", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI"}
_TARGET = "SageMaker."
_GROUPS = {"Processing": "ProcessingJobs", "Training": "TrainingJobs"}
_DENIED = (
    "User: arn:aws:iam::123456789012:user/dev is not authorized to perform:"
    " sagemaker:CreateProcessingJob on resource:"
    " arn:aws:sagemaker:eu-west-1:123456789012:processing-job/x because no"
    " identity-based policy allows the sagemaker:CreateProcessingJob action"
)
_LIMIT = (
    "The account-level service limit 'ml.m5.2xlarge for processing job usage' is 0"
    " Instances, with current utilization of 0 Instances and a request delta of 1"
    " Instances. Please use AWS Service Quotas to request an increase for this quota."
)
_NUMBERS = itertools.count()
# What the service says, by its code (with a word behind it where one code says several
# things): HTTP status and a message of its form.
FAULTS = {
    "ThrottlingException": (400, "Rate exceeded"),
    "ExpiredTokenException": (
        400,
        "The security token included in the request is expired",
    ),
    "UnrecognizedClientException": (
        400,
        "The security token included in the request is invalid.",
    ),
    "AccessDeniedException": (400, _DENIED),
    "ResourceLimitExceeded": (400, _LIMIT),
    "ValidationException": (400, "Could not assume role of the request."),
    "ValidationException/absent": (400, "Could not find requested job with name: x"),
    "InternalFailure": (500, "The request processing has failed."),
}


@dataclass(kw_only=True)
class Fault:
    """
    A fault of SageMaker.

    Args:
        pattern: Regular expression on the operation and its body's JSON.
        code: A key of `FAULTS`.
        times: How often it strikes.
        skip: Matching requests that pass first.
    """

    pattern: str
    code: str
    times: int = 1
    skip: int = 0


@dataclass(kw_only=True)
class Job:
    """
    A job as the service keeps it.

    Args:
        kind: `Processing` or `Training`.
        request: As it came.
        next: Statuses to come, one for each look.
        told: Fields of the answer beside those of the request.
    """

    kind: str
    request: dict[str, Any]
    status: str = "InProgress"
    created: float = field(default_factory=time.time)
    ended: float | None = None
    next: list[str] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.request[f"{self.kind}JobName"])

    @property
    def arn(self) -> str:
        """Its ARN."""
        return (
            f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{self.kind.lower()}-job/{self.name}"
        )

    def move(self) -> None:
        """Take the next status."""
        if self.next:
            self.status = self.next.pop(0)
        if self.status in {"Completed", "Failed", "Stopped"} and self.ended is None:
            self.ended = time.time()


class SageMakerServer(FaultyS3):
    """
    A running server; use it in a `with`.

    `jobs` are those created, by name; `on_create` is called with each new one, and may
    run it.
    """

    def __enter__(self) -> SageMakerServer:  # noqa: PYI034 - a narrower Self
        self.jobs: dict[str, Job] = {}
        self.operations: list[str] = []
        self.bodies: list[str] = []
        self.faults: list[Fault] = []
        self.on_create: Callable[[Job], None] | None = None
        super().__enter__()
        self._forget_logs()
        return self

    def _forget_logs(self) -> None:
        """Remove what jobs of an earlier server of this process said."""
        client = self.client("logs")
        for group in _GROUPS.values():
            with suppress(client.exceptions.ResourceNotFoundException):
                client.delete_log_group(logGroupName=f"/aws/sagemaker/{group}")
        client.close()

    def fault(self, pattern: str, code: str, *, times: int = 1, skip: int = 0) -> None:
        """Add a fault of SageMaker."""
        self.faults.append(Fault(pattern=pattern, code=code, times=times, skip=skip))

    def asked(self, operation: str) -> int:
        """How often an operation was asked for."""
        return self.operations.count(operation)

    def settings(self, cache_dir: Path, **more: Any) -> Settings:
        """Settings that lead here."""
        aws = {**KEYS, "AWS_REGION": REGION, "AWS_ENDPOINT_URL": self.url}
        return Settings(cache_dir=cache_dir, secrets={"aws": aws}, **more)

    def client(self, name: str) -> Any:
        """A plain client, to look behind our own."""
        import boto3

        return boto3.client(
            name,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def make_bucket(self) -> str:
        """A bucket of its own; moto keeps those of every server of a process."""
        name = f"bucket-{next(_NUMBERS)}"
        client = self.client("s3")
        client.create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        client.close()
        self.forget()
        return name

    def put_log(self, job: Job, host: str, lines: Iterable[str]) -> None:
        """Let a host of a job say something."""
        client = self.client("logs")
        group = f"/aws/sagemaker/{_GROUPS[job.kind]}"
        stream = f"{job.name}/{host}-1700000000"
        exists = client.exceptions.ResourceAlreadyExistsException
        for call, names in (
            (client.create_log_group, {"logGroupName": group}),
            (
                client.create_log_stream,
                {"logGroupName": group, "logStreamName": stream},
            ),
        ):
            with suppress(exists):
                call(**names)
        now = int(time.time() * 1000)
        client.put_log_events(
            logGroupName=group,
            logStreamName=stream,
            logEvents=[{"timestamp": now, "message": line} for line in lines],
        )
        client.close()

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        if not target.startswith(_TARGET):
            return super()._answer(environ, start)
        operation = target.removeprefix(_TARGET)
        text = environ["wsgi.input"].read().decode()
        with self._lock:
            self.operations.append(operation)
            self.bodies.append(text)
            code = self._strike_fault(f"{operation} {text}")
        if code:
            status, message = FAULTS[code]
            return _refuse(start, status, code.partition("/")[0], message)
        answer: list[bytes] = self._sagemaker(operation, json.loads(text), start)
        return answer

    def _strike_fault(self, line: str) -> str | None:
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, line):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault.code
        return None

    def _sagemaker(self, operation: str, body: dict[str, Any], start: Any) -> Any:
        found = re.fullmatch(
            r"(Create|Describe|Stop|List)(Processing|Training)Job(s?)", operation
        )
        assert found is not None, operation
        verb, kind = found.group(1), found.group(2)
        if verb == "List":
            return self._list(kind, operation, body, start)
        name = body[f"{kind}JobName"]
        job = self.jobs.get(name)
        if job is not None and job.kind != kind:
            job = None
        if verb == "Create":
            return self._create(kind, body, job, start)
        if job is None:
            return _refuse(
                start,
                400,
                "ValidationException",
                f"Could not find requested job with name: {name}"
                if kind == "Processing"
                else "Requested resource not found.",
            )
        if verb == "Stop":
            return self._stop(job, operation, start)
        with self._lock:
            job.move()
        return _send(start, operation, _described(job))

    def _create(
        self, kind: str, body: dict[str, Any], job: Job | None, start: Any
    ) -> Any:
        if job is not None:
            return _refuse(
                start,
                400,
                "ResourceInUse",
                "Job name must be unique within an AWS account and region, and a job"
                f" with this name already exists ({job.arn})",
            )
        made = Job(kind=kind, request=body)
        with self._lock:
            self.jobs[made.name] = made
        if self.on_create:
            self.on_create(made)
        return _send(start, f"Create{kind}Job", {f"{kind}JobArn": made.arn})

    def _stop(self, job: Job, operation: str, start: Any) -> Any:
        if job.ended is not None:
            return _refuse(
                start,
                400,
                "ValidationException",
                f"The request was rejected because the {job.kind.lower()} job is in"
                f" status {job.status}.",
            )
        job.status, job.next = "Stopping", ["Stopping", "Stopped"]
        return _send(start, operation, {})

    def _list(
        self, kind: str, operation: str, body: dict[str, Any], start: Any
    ) -> list[bytes]:
        wanted = body.get("NameContains", "")
        if "NameContains" in body and not re.fullmatch(r"[a-zA-Z0-9\-]{1,63}", wanted):
            return _refuse(start, 400, "ValidationException", "NameContains: pattern")
        found = [j for j in self.jobs.values() if j.kind == kind and wanted in j.name]
        found.sort(key=lambda job: job.created, reverse=True)
        first = int(body.get("NextToken", 0))
        last = first + body.get("MaxResults", 10)
        answer: dict[str, Any] = {
            f"{kind}JobSummaries": [
                {
                    f"{kind}JobName": job.name,
                    f"{kind}JobArn": job.arn,
                    f"{kind}JobStatus": job.status,
                    "CreationTime": job.created,
                }
                for job in found[first:last]
            ]
        }
        if last < len(found):
            answer["NextToken"] = str(last)
        return _send(start, operation, answer)


def _described(job: Job) -> dict[str, Any]:
    """What `Describe` tells: the request's own fields, and the state."""
    told = {
        **{k: v for k, v in job.request.items() if k != "Tags"},
        f"{job.kind}JobArn": job.arn,
        f"{job.kind}JobStatus": job.status,
        "CreationTime": job.created,
        **job.told,
    }
    if job.kind == "Training":
        told.setdefault("SecondaryStatus", "Training")
        told.setdefault("ModelArtifacts", {"S3ModelArtifacts": "s3://b/model.tar.gz"})
    word = f"{job.kind}StartTime"
    told.setdefault(word, job.created)
    if job.ended is not None:
        told[f"{job.kind}EndTime"] = job.ended
    return told


def _send(start: Any, operation: str, answer: dict[str, Any]) -> list[bytes]:
    assert set(answer) <= _fields(operation), operation
    return _reply(start, 200, answer)


@cache
def _fields(operation: str) -> frozenset[str]:
    """What an answer may have, by botocore's model."""
    import botocore.session

    model = botocore.session.get_session().get_service_model("sagemaker")
    shape = model.operation_model(operation).output_shape
    return frozenset(shape.members if shape else ())


def _refuse(start: Any, status: int, code: str, message: str) -> list[bytes]:
    """A fault as the JSON protocol has it."""
    key = "Message" if code.startswith("Resource") else "message"
    return _reply(start, status, {"__type": code, key: message})


def _reply(start: Any, status: int, answer: dict[str, Any]) -> list[bytes]:
    body = json.dumps(answer).encode()
    start(
        f"{status} {'OK' if status == 200 else 'Refused'}",
        [
            ("Content-Type", "application/x-amz-json-1.1"),
            ("Content-Length", str(len(body))),
        ],
    )
    return [body]
