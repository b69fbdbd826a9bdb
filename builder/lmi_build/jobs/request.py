"""
Requests of SageMaker's API for planned jobs, in boto3's shape.

A job's channel is a folder in S3 that is named by its content, so that the request is
the same for the same job. What a job reads and makes besides goes through the shared
store; where it has no network, the store comes as a second channel and leaves as an
output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build import sagemaker
from lmi_build.errors import UsageInvalid
from lmi_build.jobs.upload import folder_key
from lmi_build.plan.saved import plan_to_json
from lmi_build.values.job import (
    ENTRY_FILE,
    JOB_FILE,
    PLAN_FILE,
    PROCESSING,
    WHEELS_FILE,
    JobDocument,
    job_to_json,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.jobs.graph import JobGraph, PlannedJob
    from lmi_build.jobs.wheel import Wheel

JOB_CHANNEL, STORE_CHANNEL, WHEELS_CHANNEL = "job", "store", "wheels"
STORE_OUTPUT, REPORT_OUTPUT = "store", "report"
PROCESSING_INPUT = "/opt/ml/processing/input"
PROCESSING_OUTPUT = "/opt/ml/processing/output"
TRAINING_INPUT = "/opt/ml/input/data"
CHECKPOINTS = "/opt/ml/checkpoints"
# What lists the records and blobs that a job without network needs.
STORE_MANIFEST = "store.manifest"
OPERATIONS = {PROCESSING: "CreateProcessingJob", "training": "CreateTrainingJob"}
_KMS_VARIABLE = "LMI_BUILD_STORE_KMS_KEY_ID"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """
    One call, and the files it names.

    Args:
        job: Name of the job.
        operation: Such as `CreateProcessingJob`.
        document: As boto3 takes it.
        channel_key: Where the channel lies below the store's prefix.
        channel: Its files by name.
    """

    job: str
    operation: str
    document: Mapping[str, Any]
    channel_key: str
    channel: Mapping[str, bytes]


def plan_bytes(graph: JobGraph) -> bytes:
    """The plan as a channel holds it, the same for every job of a graph."""
    return json.dumps(plan_to_json(graph.plan), separators=(",", ":")).encode()


def job_document(
    job: PlannedJob, graph: JobGraph, wheel: str, *, endpoint_url: str | None = None
) -> JobDocument:
    """
    What a job is told.

    Args:
        job: Of the graph.
        graph: The whole.
        wheel: File name of the package's wheel.
        endpoint_url: Another S3 server than AWS's.
    """
    return JobDocument(
        name=job.name,
        kind=job.kind,
        stages=job.stages,
        store="" if graph.spec.network_isolation else graph.store,
        wheel=wheel,
        region=graph.region,
        endpoint_url=endpoint_url,
        num_hosts=job.num_hosts,
        publish=graph.publishes(job),
        secrets=dict(graph.spec.secrets),
        max_runtime_seconds=job.max_runtime_seconds,
    )


def make_request(
    job: PlannedJob,
    graph: JobGraph,
    *,
    role_arn: str,
    wheel: Wheel,
    plan: bytes,
    endpoint_url: str | None = None,
) -> Request:
    """
    The call that creates a job.

    Args:
        job: Of the graph.
        graph: The whole.
        role_arn: Role that the job runs as.
        wheel: The package.
        plan: Of `plan_bytes`.
        endpoint_url: Another S3 server than AWS's.
    """
    told = job_document(job, graph, wheel.name, endpoint_url=endpoint_url)
    files = {
        JOB_FILE: json.dumps(job_to_json(told), sort_keys=True, indent=1).encode(),
        PLAN_FILE: plan,
        ENTRY_FILE: entry_script(),
        wheel.name: wheel.data,
    }
    if graph.wheels is not None:
        files[WHEELS_FILE] = graph.wheels.requirements()
    key = folder_key(files)
    make = _processing if job.kind == PROCESSING else _training
    return Request(
        job=job.name,
        operation=OPERATIONS[job.kind],
        document=make(job, graph, role_arn, f"{graph.store}/{key}"),
        channel_key=key,
        channel=files,
    )


def entry_script() -> bytes:
    """The script that starts a container."""
    return (Path(sagemaker.__file__).parent / ENTRY_FILE).read_bytes()


def role_of(graph: JobGraph) -> str:
    """
    The ARN of the jobs' role, where the recipe says it whole.

    Raises:
        UsageInvalid: `job.no-role`: nobody names one, or by its name alone, which only
            IAM can complete.
    """
    role = graph.spec.role
    if role and role.startswith("arn:"):
        return role
    arn = f"arn:aws:iam::ACCOUNT:role/{role or 'NAME'}"
    raise UsageInvalid(
        f"the role `{role}` is a name; a request needs its ARN"
        if role
        else "nobody says which role the jobs run as",
        code="job.no-role",
        hints=(f"write `job: {{role: {arn}}}`, or give `--set job.role={arn}`",),
    )


def job_folder(job: PlannedJob, graph: JobGraph) -> str:
    """Where a job leaves what is about itself alone."""
    return f"{graph.store}/jobs/{job.name}"


def _wheels_uri(graph: JobGraph) -> str:
    assert graph.wheels is not None  # noqa: S101 - the caller asked
    return f"{graph.store}/{graph.wheels.key}"


def _processing(
    job: PlannedJob, graph: JobGraph, role_arn: str, channel: str
) -> dict[str, Any]:
    spec = graph.spec
    inputs = [_input(JOB_CHANNEL, channel, "S3Prefix")]
    if graph.wheels is not None:
        inputs.append(_input(WHEELS_CHANNEL, _wheels_uri(graph), "S3Prefix"))
    if spec.network_isolation and job.needs:
        manifest = f"{job_folder(job, graph)}/{STORE_MANIFEST}"
        inputs.append(_input(STORE_CHANNEL, manifest, "ManifestFile"))
    entry = f"{PROCESSING_INPUT}/{JOB_CHANNEL}/{ENTRY_FILE}"
    cluster = {
        "InstanceType": job.instance,
        "InstanceCount": job.num_hosts,
        "VolumeSizeInGB": job.volume_size_gb,
    }
    network: dict[str, Any] = {
        "EnableInterContainerTrafficEncryption": spec.encrypt_traffic,
        "EnableNetworkIsolation": spec.network_isolation,
    }
    return {
        "ProcessingJobName": job.name,
        "RoleArn": role_arn,
        "AppSpecification": {
            "ImageUri": job.image,
            "ContainerEntrypoint": ["bash", entry],
        },
        "ProcessingInputs": inputs,
        "ProcessingResources": {
            "ClusterConfig": {
                **cluster,
                **_given("VolumeKmsKeyId", job.volume_kms_key_id),
            }
        },
        "ProcessingOutputConfig": {
            "Outputs": _outputs(job, graph),
            **_given("KmsKeyId", spec.output_kms_key_id),
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": job.max_runtime_seconds},
        "NetworkConfig": {**network, **_given("VpcConfig", _vpc(graph))},
        **_given("Environment", _environment(graph)),
        **_given("Tags", _tags(graph)),
    }


def _training(
    job: PlannedJob, graph: JobGraph, role_arn: str, channel: str
) -> dict[str, Any]:
    spec, base = graph.spec, job_folder(job, graph)
    channels = [_channel(JOB_CHANNEL, channel, "S3Prefix")]
    if graph.wheels is not None:
        channels.append(_channel(WHEELS_CHANNEL, _wheels_uri(graph), "S3Prefix"))
    if spec.network_isolation and job.needs:
        manifest = f"{base}/{STORE_MANIFEST}"
        channels.append(_channel(STORE_CHANNEL, manifest, "ManifestFile"))
    entry = f"{TRAINING_INPUT}/{JOB_CHANNEL}/{ENTRY_FILE}"
    resources = {"InstanceType": job.instance, "InstanceCount": job.num_hosts}
    stopping = {"MaxRuntimeInSeconds": job.max_runtime_seconds}
    document: dict[str, Any] = {
        "TrainingJobName": job.name,
        "RoleArn": role_arn,
        "AlgorithmSpecification": {
            "TrainingImage": job.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["bash", entry],
        },
        "InputDataConfig": channels,
        # Files as they are: they are records and blobs of the store.
        "OutputDataConfig": {
            "S3OutputPath": f"{base}/output",
            "CompressionType": "NONE",
            **_given("KmsKeyId", spec.output_kms_key_id),
        },
        "ResourceConfig": {
            **resources,
            **_given("VolumeSizeInGB", job.volume_size_gb),
            **_given("VolumeKmsKeyId", job.volume_kms_key_id),
        },
        "StoppingCondition": stopping,
        "EnableNetworkIsolation": spec.network_isolation,
        "EnableInterContainerTrafficEncryption": spec.encrypt_traffic,
        **_given("VpcConfig", _vpc(graph)),
        **_given("Environment", _environment(graph)),
        **_given("Tags", _tags(graph)),
    }
    if spec.spot:
        # A stopped job starts again with this folder; half-done work lies in the store.
        wait = max(spec.max_wait_seconds or 0, job.max_runtime_seconds)
        stopping["MaxWaitTimeInSeconds"] = wait
        document["EnableManagedSpotTraining"] = True
        document["CheckpointConfig"] = {
            "S3Uri": f"{base}/checkpoints",
            "LocalPath": CHECKPOINTS,
        }
    return document


def _given(name: str, value: Any) -> dict[str, Any]:
    """A member of a request, left out where there is nothing to say."""
    return {name: value} if value else {}


def _input(name: str, uri: str, data_type: str) -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {
            "S3Uri": uri,
            "LocalPath": f"{PROCESSING_INPUT}/{name}",
            "S3DataType": data_type,
            "S3InputMode": "File",
            "S3DataDistributionType": "FullyReplicated",
        },
    }


def _outputs(job: PlannedJob, graph: JobGraph) -> list[dict[str, Any]]:
    """
    What SageMaker sends when the job ends: logs and the result.

    A job without network also leaves what it built, and its result lies where others
    put theirs by themselves.
    """
    base = job_folder(job, graph)
    if not graph.spec.network_isolation:
        return [_output(REPORT_OUTPUT, f"{base}/{REPORT_OUTPUT}")]
    return [
        _output(REPORT_OUTPUT, base),
        _output(STORE_OUTPUT, f"{base}/{STORE_OUTPUT}"),
    ]


def _output(name: str, uri: str) -> dict[str, Any]:
    return {
        "OutputName": name,
        "S3Output": {
            "S3Uri": uri,
            "LocalPath": f"{PROCESSING_OUTPUT}/{name}",
            "S3UploadMode": "EndOfJob",
        },
    }


def _channel(name: str, uri: str, data_type: str) -> dict[str, Any]:
    return {
        "ChannelName": name,
        "InputMode": "File",
        "DataSource": {
            "S3DataSource": {
                "S3Uri": uri,
                "S3DataType": data_type,
                "S3DataDistributionType": "FullyReplicated",
            }
        },
    }


def _vpc(graph: JobGraph) -> dict[str, list[str]]:
    spec = graph.spec
    if not spec.subnets:
        return {}
    return {
        "SecurityGroupIds": list(spec.security_group_ids),
        "Subnets": list(spec.subnets),
    }


def _environment(graph: JobGraph) -> dict[str, str]:
    """The user's variables, and the key of what is written to the store."""
    key = graph.spec.output_kms_key_id
    return {**({_KMS_VARIABLE: key} if key else {}), **graph.spec.environment}


def _tags(graph: JobGraph) -> list[dict[str, str]]:
    return [{"Key": k, "Value": v} for k, v in sorted(graph.spec.tags.items())]
