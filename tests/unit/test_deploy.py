"""Deploy settings, held to botocore's own model of SageMaker's API."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.catalog.images import regions
from lmi_build.catalog.instances import instances
from lmi_build.catalog.releases import releases
from lmi_build.digest import digest_bytes
from lmi_build.errors import UsageInvalid
from lmi_build.package.deploy import (
    Deployment,
    create_endpoint_config,
    create_model,
    deployment_of,
    deployment_problems,
    download_seconds,
    model_data_source,
    request_bodies,
    volume_gib,
)
from lmi_build.package.worker import make_manifest
from lmi_build.values.manifest import FileEntry
from packed import sample_facts, sample_params

MODEL = botocore.session.get_session().get_service_model("sagemaker")
TAG = releases()["djl-tensorrtllm-0.33.0"].tag
GIB = 1 << 30
DEPLOYMENT = Deployment(
    name="llama-3.1-8b_awq",
    uri="s3://bucket/models/llama",
    tag=TAG,
    region="us-east-1",
    instance_type="ml.g5.12xlarge",
    artifact_bytes=20 * GIB,
    environment={"SERVING_LOG_LEVEL": "info"},
    startup_seconds=1800,
)


def faults(bodies: dict[str, dict[str, Any]]) -> list[str]:
    """What botocore has against the bodies, by operation."""
    found = []
    for operation, body in bodies.items():
        shape = MODEL.operation_model(operation).input_shape
        report = ParamValidator().validate(body, shape)
        if report.has_errors():
            found.append(f"{operation}: {report.generate_report()}")
    return found


def test_botocore_takes_the_bodies() -> None:
    assert faults(request_bodies(DEPLOYMENT)) == []


def test_botocore_would_have_seen_a_fault() -> None:
    """The validator really looks: a wrong type and a wrong key are found."""
    bodies = request_bodies(DEPLOYMENT)
    bodies["CreateModel"]["PrimaryContainer"]["Enviroment"] = {}
    bodies["CreateEndpointConfig"]["ProductionVariants"][0]["ModelName"] = 3

    assert len(faults(bodies)) == 2


def test_the_image_is_the_regions_own() -> None:
    abroad = replace(DEPLOYMENT, region="cn-north-1")

    assert create_model(DEPLOYMENT)["PrimaryContainer"]["Image"] == (
        "763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:"
        "0.33.0-tensorrtllm0.21.0-cu128"
    )
    assert abroad.image.split("/")[0].endswith(".amazonaws.com.cn")
    assert abroad.image.split(".")[0] != "763104351884"


def test_the_model_is_mounted_as_it_lies() -> None:
    source = model_data_source(DEPLOYMENT)["S3DataSource"]

    assert source == {
        "S3Uri": "s3://bucket/models/llama/",
        "S3DataType": "S3Prefix",
        "CompressionType": "None",
    }


def test_an_archive_is_one_object() -> None:
    packed = replace(DEPLOYMENT, uri="s3://bucket/models/model.tar.gz", compressed=True)

    assert model_data_source(packed)["S3DataSource"] == {
        "S3Uri": "s3://bucket/models/model.tar.gz",
        "S3DataType": "S3Object",
        "CompressionType": "Gzip",
    }
    assert faults(request_bodies(packed)) == []


def test_timeouts_and_disk_follow_the_artifact() -> None:
    """An instance with its own disk is asked for none, another for enough."""
    variant = create_endpoint_config(DEPLOYMENT)["ProductionVariants"][0]
    slow = replace(DEPLOYMENT, instance_type="ml.c7i.4xlarge", compressed=True)

    assert variant["ContainerStartupHealthCheckTimeoutInSeconds"] == 1800
    assert variant["ModelDataDownloadTimeoutInSeconds"] == 60 + 20 * 16
    assert "VolumeSizeInGB" not in variant
    assert volume_gib(slow) == 32 + 2 * 20
    assert volume_gib(replace(slow, artifact_bytes=900 * GIB)) == 512


@given(artifact_bytes=st.integers(0, 1 << 50))
def test_a_download_is_given_what_the_api_allows(artifact_bytes: int) -> None:
    """More bytes never get less time, and no time is out of the API's range."""
    limits = MODEL.shape_for("ProductionVariantModelDataDownloadTimeoutInSeconds")
    seconds = download_seconds(artifact_bytes)

    assert limits.metadata["min"] <= seconds <= limits.metadata["max"]
    assert download_seconds(artifact_bytes + 1) >= seconds


def test_every_catalogued_instance_is_known_to_the_api() -> None:
    enum = MODEL.shape_for("ProductionVariantInstanceType").enum
    gpus = [row.name for row in instances().values() if row.accelerator == "gpu"]

    assert [name for name in gpus if name not in enum] == []


@settings(max_examples=30)
@given(
    name=st.text(max_size=90),
    region=st.sampled_from(regions(TAG)),
    environment=st.dictionaries(
        st.from_regex(r"[A-Z][A-Z_0-9]{0,20}", fullmatch=True), st.text(max_size=99)
    ),
    seconds=st.integers(0, 3600),
    artifact_bytes=st.integers(0, 1 << 42),
    compressed=st.booleans(),
)
def test_any_artifact_gives_bodies_that_botocore_takes(
    *,
    name: str,
    region: str,
    environment: dict[str, str],
    seconds: int,
    artifact_bytes: int,
    compressed: bool,
) -> None:
    deployment = replace(
        DEPLOYMENT,
        name=name,
        region=region,
        environment=environment,
        startup_seconds=seconds,
        artifact_bytes=artifact_bytes,
        compressed=compressed,
    )

    assert list(deployment_problems(deployment)) == []
    assert faults(request_bodies(deployment)) == []
    pattern = MODEL.shape_for("ModelName").metadata["pattern"]
    resource = deployment.resource_name
    assert re.fullmatch(pattern, resource)
    assert len(resource) <= MODEL.shape_for("ModelName").metadata["max"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"region": "us-east-9"}, "deploy.region-unknown"),
        ({"uri": "/tmp/artifact"}, "deploy.not-published"),  # noqa: S108 - no file
        ({"uri": "s3://bucket"}, "deploy.not-published"),
        ({"environment": {"A": "x" * 1025}}, "deploy.environment-too-long"),
        ({"startup_seconds": 3601}, "deploy.timeout-too-long"),
    ],
)
def test_what_sagemaker_would_refuse_is_refused_here(
    change: dict[str, Any], code: str
) -> None:
    problems = list(deployment_problems(replace(DEPLOYMENT, **change)))

    assert [problem.code for problem in problems] == [code]
    assert problems[0].hint


def test_a_manifest_is_all_it_takes() -> None:
    params = sample_params(
        facts=sample_facts(kind="hub", source="owner/name", revision="0" * 40)
    )
    files = [FileEntry(path="model.py", size=GIB, digest=digest_bytes(b""))]
    manifest = make_manifest(params, files, ledger=None)
    given_values = {
        "uri": "s3://bucket/prefix/",
        "tag": TAG,
        "instance_type": "ml.g5.2xlarge",
    }
    deployment = deployment_of(manifest, region="eu-west-1", **given_values)

    assert deployment.artifact_bytes == GIB
    assert (
        deployment.startup_seconds
        == (params["deploy"]["container_startup_health_check_timeout_seconds"])
    )
    assert faults(request_bodies(deployment)) == []
    with pytest.raises(UsageInvalid) as caught:
        deployment_of(manifest, region="eu-west-9", **given_values)
    assert caught.value.code == "deploy.region-unknown"
    assert "eu-west-" in caught.value.hints[0]
