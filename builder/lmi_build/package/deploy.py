"""
What SageMaker is told to serve an artifact: request bodies as plain values.

Pure: nothing is asked of AWS here, and nothing but the manifest decides.

Source: the SageMaker API reference, `CreateModel`, `CreateEndpointConfig` and
`CreateEndpoint`; a test holds the bodies to botocore's own model of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.images import REPOSITORY, image_uri, regions
from lmi_build.catalog.instances import instances
from lmi_build.errors import Problem, UsageInvalid
from lmi_build.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.values.manifest import Manifest

ROLE_PLACEHOLDER = "arn:aws:iam::000000000000:role/SageMakerExecutionRole"
VARIANT = "AllTraffic"
# Both are the API's own limits, in seconds.
_LEAST_TIMEOUT = 60
_MOST_TIMEOUT = 3600
# The API takes 512 GiB at most; instances with an NVMe disk take none.
_MOST_VOLUME_GIB = 512
_SMALLEST_VOLUME_GIB = 32
# Half of what a single connection to S3 gives, so that a slow day is survived.
_DOWNLOAD_BYTES_A_SECOND = 64 << 20
_GIB = 1 << 30
_ENVIRONMENT_LIMIT = 1024
_NAME_LIMIT = 63
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """
    Everything that decides how an artifact is deployed.

    Args:
        name: The artifact's name.
        uri: Where it was published, an S3 prefix or archive.
        tag: Tag of the image.
        region: Such as `us-east-1`.
        instance_type: Such as `ml.g5.12xlarge`.
        artifact_bytes: Bytes of the artifact.
        compressed: It is a `model.tar.gz`.
        environment: Variables of the container.
        startup_seconds: How long the server may take to load the model.
        role: The execution role.
        instance_count: Instances of the endpoint.
        repository: Repository of the image.
    """

    name: str
    uri: str
    tag: str
    region: str
    instance_type: str
    artifact_bytes: int
    compressed: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    startup_seconds: int = 1200
    role: str = ROLE_PLACEHOLDER
    instance_count: int = 1
    repository: str = REPOSITORY

    @property
    def image(self) -> str:
        """The container's image in the region's own registry."""
        return image_uri(self.tag, self.region, repository=self.repository)

    @property
    def resource_name(self) -> str:
        """The artifact's name in the characters and the length that the API takes."""
        plain = _NOT_IN_NAMES.sub("-", self.name).strip("-")
        return plain[:_NAME_LIMIT].rstrip("-") or "model"


def deployment_of(
    manifest: Manifest,
    *,
    uri: str,
    tag: str,
    region: str,
    instance_type: str,
    role: str = ROLE_PLACEHOLDER,
    repository: str = REPOSITORY,
) -> Deployment:
    """
    The deployment of one published artifact.

    Args:
        manifest: The artifact's.
        uri: Where it was published.
        tag: Tag of the image that serves it.
        region: Region of the endpoint.
        instance_type: Instance of the endpoint.
        role: The execution role.
        repository: Repository of the image.

    Raises:
        UsageInvalid: `deploy.*`, with every hint, when no deployment is possible.
    """
    deploy = manifest.deploy
    environment = deploy.get("environment")
    seconds = deploy.get("container_startup_health_check_timeout_seconds")
    found = Deployment(
        name=manifest.name,
        uri=uri,
        tag=tag,
        region=region,
        instance_type=instance_type,
        artifact_bytes=manifest.total_bytes,
        compressed=deploy.get("model_data_compression") == "Gzip",
        environment=_texts(environment if isinstance(environment, dict) else {}),
        startup_seconds=seconds if isinstance(seconds, int) else 1200,
        role=role,
        repository=repository,
    )
    problems = tuple(deployment_problems(found))
    if problems:
        raise UsageInvalid(
            problems[0].message,
            code=problems[0].code,
            hints=tuple(problem.hint for problem in problems),
        )
    return found


def deployment_problems(deployment: Deployment) -> Iterator[Problem]:
    """Every reason why SageMaker would refuse the bodies, or the endpoint would die."""
    having = regions(deployment.tag, repository=deployment.repository)
    if deployment.region not in having:
        near = did_you_mean(deployment.region, having)
        yield Problem(
            code="deploy.region-unknown",
            message=f"region `{deployment.region}` has no LMI images",
            hint=f"did you mean `{near}`?"
            if near
            else "use a region such as us-east-1",
        )
    if not re.match(r"s3://[^/]+/.+", deployment.uri):
        yield Problem(
            code="deploy.not-published",
            message=f"{deployment.uri} is not in S3; SageMaker loads only from there",
            hint="publish it first: `lmi-build publish ARTIFACT s3://BUCKET/PREFIX`",
        )
    for name, value in sorted(deployment.environment.items()):
        if len(name) > _ENVIRONMENT_LIMIT or len(value) > _ENVIRONMENT_LIMIT:
            yield Problem(
                code="deploy.environment-too-long",
                message=f"the variable {name[:40]} has {len(value)} characters,"
                f" SageMaker takes {_ENVIRONMENT_LIMIT}",
                hint="put the setting into `serve.properties`",
            )
    if deployment.startup_seconds > _MOST_TIMEOUT:
        yield Problem(
            code="deploy.timeout-too-long",
            message=f"{deployment.startup_seconds} s to load are more than the"
            f" {_MOST_TIMEOUT} s that SageMaker waits",
            path="serve.model_loading_timeout",
            hint=f"write `model_loading_timeout: {_MOST_TIMEOUT}` at most",
        )


def create_model(deployment: Deployment) -> dict[str, Any]:
    """
    The body of `CreateModel`.

    The artifact is named by prefix, uncompressed where it is, so that it is mounted
    at `/opt/ml/model` as it lies in S3; nothing in it names another place.
    """
    return {
        "ModelName": deployment.resource_name,
        "ExecutionRoleArn": deployment.role,
        "PrimaryContainer": {
            "Image": deployment.image,
            "ModelDataSource": model_data_source(deployment),
            "Environment": dict(sorted(deployment.environment.items())),
        },
    }


def model_data_source(deployment: Deployment) -> dict[str, Any]:
    """Where the container's model folder comes from."""
    if deployment.compressed:
        kind, compression, uri = "S3Object", "Gzip", deployment.uri
    else:
        kind, compression = "S3Prefix", "None"
        uri = deployment.uri if deployment.uri.endswith("/") else f"{deployment.uri}/"
    return {
        "S3DataSource": {
            "S3Uri": uri,
            "S3DataType": kind,
            "CompressionType": compression,
        }
    }


def create_endpoint_config(deployment: Deployment) -> dict[str, Any]:
    """The body of `CreateEndpointConfig`: one variant with the artifact's model."""
    variant: dict[str, Any] = {
        "VariantName": VARIANT,
        "ModelName": deployment.resource_name,
        "InstanceType": deployment.instance_type,
        "InitialInstanceCount": deployment.instance_count,
        "InitialVariantWeight": 1.0,
        "ModelDataDownloadTimeoutInSeconds": download_seconds(
            deployment.artifact_bytes
        ),
        "ContainerStartupHealthCheckTimeoutInSeconds": _within(
            deployment.startup_seconds
        ),
    }
    volume = volume_gib(deployment)
    if volume is not None:
        variant["VolumeSizeInGB"] = volume
    return {
        "EndpointConfigName": deployment.resource_name,
        "ProductionVariants": [variant],
    }


def create_endpoint(deployment: Deployment) -> dict[str, Any]:
    """The body of `CreateEndpoint`."""
    return {
        "EndpointName": deployment.resource_name,
        "EndpointConfigName": deployment.resource_name,
    }


def request_bodies(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """Every body by the name of its operation, in the order of the calls."""
    return {
        "CreateModel": create_model(deployment),
        "CreateEndpointConfig": create_endpoint_config(deployment),
        "CreateEndpoint": create_endpoint(deployment),
    }


def download_seconds(artifact_bytes: int) -> int:
    """How long the download may take before SageMaker gives up."""
    return _within(_LEAST_TIMEOUT + artifact_bytes // _DOWNLOAD_BYTES_A_SECOND)


def volume_gib(deployment: Deployment) -> int | None:
    """
    The disk to ask for, in GiB; None where the instance has its own.

    An archive lies there twice while it is unpacked.
    """
    machine = instances().get(deployment.instance_type)
    if machine is not None and machine.own_disk:
        return None
    copies = 2 if deployment.compressed else 1
    wanted = _SMALLEST_VOLUME_GIB + -(-copies * deployment.artifact_bytes // _GIB)
    return min(wanted, _MOST_VOLUME_GIB)


def _within(seconds: int) -> int:
    return max(_LEAST_TIMEOUT, min(seconds, _MOST_TIMEOUT))


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
