"""The section `job`: how a build runs as SageMaker jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field

from lmi_build.recipe import job_forms
from lmi_build.recipe.section import KmsKey, Region, Section, TagKey, TagValue

# Limits of SageMaker's CreateProcessingJob and CreateTrainingJob, the narrower of both.
MAX_HOSTS = 100
MAX_JOB_SECONDS = 777_600
MAX_JOB_VARIABLES = 90  # of 100; the rest is for what we set ourselves

InstanceType: TypeAlias = Annotated[str, AfterValidator(job_forms.check_instance)]
StageKind: TypeAlias = Annotated[str, AfterValidator(job_forms.check_stage_kind)]
Image: TypeAlias = Annotated[str, AfterValidator(job_forms.check_image)]
NetworkId: TypeAlias = Annotated[str, AfterValidator(job_forms.check_network_id)]
JobVariable: TypeAlias = Annotated[str, AfterValidator(job_forms.check_variable)]
JobValue: TypeAlias = Annotated[str, AfterValidator(job_forms.check_variable_value)]


class JobSection(Section):
    """How the same build runs as SageMaker jobs; it moves no key."""

    store: Annotated[str, AfterValidator(job_forms.check_store)] | None = Field(
        default=None,
        description="`s3://bucket/prefix` of the store that jobs and machines share; "
        "`--store` and `LMI_BUILD_STORE` go before it.",
        examples=["s3://my-models/lmi-build"],
    )
    role: Annotated[str, AfterValidator(job_forms.check_role)] | None = Field(
        default=None,
        description="Role that the jobs run as: its ARN, or its name in your account.",
        examples=["arn:aws:iam::111122223333:role/lmi-build"],
    )
    region: Region | None = Field(
        default=None, description="AWS region of the jobs.", examples=["us-east-1"]
    )
    kind: Literal["auto", "processing", "training"] = Field(
        default="auto",
        description="Kind of job; `auto` is processing, and training where SageMaker "
        "takes the instance for no processing job.",
    )
    instance: Annotated[str, AfterValidator(job_forms.check_instance_or_auto)] = Field(
        default="auto",
        description="Instance type of every stage that `instances` does not name; "
        "`auto` is the smallest that the plan fits.",
        examples=["ml.m5.2xlarge"],
    )
    instances: dict[StageKind, InstanceType] = Field(
        default={},
        description="Kind of stage to the instance type it runs on.",
        examples=[{"quantize": "ml.m5.4xlarge"}],
    )
    num_hosts: Annotated[int, Field(ge=1, le=MAX_HOSTS)] = Field(
        default=1, description="Hosts of one job that share its stages."
    )
    max_jobs: Annotated[int, Field(ge=1, le=MAX_HOSTS)] = Field(
        default=4, description="Jobs that may run at once."
    )
    image: Image | None = Field(
        default=None,
        description="Image of every job: a URI, or `sha256:...` that pins the "
        "catalogue's; the catalogue's by default.",
        examples=["111122223333.dkr.ecr.us-east-1.amazonaws.com/lmi-build:1"],
    )
    images: dict[StageKind, Image] = Field(
        default={}, description="Kind of stage to the image it runs in."
    )
    wheels: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Folder of wheels that jobs install beside what their image has, "
        "without a network; relative to the recipe.",
        examples=["./wheels"],
    )
    volume_size_gb: Annotated[Any, AfterValidator(job_forms.check_volume)] = Field(
        default="auto",
        description="Disk of one host in GB; `auto` is what the plan needs.",
        examples=[200],
        json_schema_extra={
            "anyOf": [
                {"const": "auto"},
                {"type": "integer", "minimum": 1, "maximum": job_forms.MAX_VOLUME_GB},
            ]
        },
    )
    volume_kms_key_id: KmsKey | None = Field(
        default=None, description="Key that encrypts that disk."
    )
    output_kms_key_id: KmsKey | None = Field(
        default=None, description="Key that encrypts what jobs write to S3."
    )
    max_runtime_seconds: Annotated[int, Field(ge=1, le=MAX_JOB_SECONDS)] | None = Field(
        default=None,
        description="When SageMaker stops a job; from the plan by default.",
        examples=[14400],
    )
    spot: bool = Field(
        default=False, description="Whether training jobs run on spare capacity."
    )
    max_wait_seconds: Annotated[int, Field(ge=1, le=MAX_JOB_SECONDS)] | None = Field(
        default=None,
        description="Longest time of a job on spare capacity, waiting included.",
    )
    subnets: Annotated[list[NetworkId], Field(max_length=16)] = Field(
        default=[], description="Subnets of your VPC.", examples=[["subnet-0abc123"]]
    )
    security_group_ids: Annotated[list[NetworkId], Field(max_length=5)] = Field(
        default=[], description="Its security groups.", examples=[["sg-0abc123"]]
    )
    network_isolation: bool = Field(
        default=False,
        description="No network in the jobs; what they need comes by channels.",
    )
    encrypt_traffic: bool = Field(
        default=False, description="Encrypt what the hosts of one job tell each other."
    )
    tags: Annotated[dict[TagKey, TagValue], AfterValidator(job_forms.check_tags)] = (
        Field(default={}, description="Tags of the jobs.")
    )
    environment: Annotated[
        dict[JobVariable, JobValue], Field(max_length=MAX_JOB_VARIABLES)
    ] = Field(default={}, description="Further variables of the jobs; never secrets.")
    secrets: dict[JobVariable, str] = Field(
        default={},
        description="Variable to `secretsmanager:NAME#KEY` or `ssm:/NAME`; read inside "
        "the job, never written down.",
        examples=[{"HF_TOKEN": "secretsmanager:hub#token"}],
    )
    name_prefix: Annotated[str, AfterValidator(job_forms.check_prefix)] | None = Field(
        default=None,
        description="What the names of jobs start with; the recipe's name by default.",
    )
