"""Optimization jobs where LMI's tools can do it, and endpoints' requests, checked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from job_works import BASE, ROLE, work_of
from lmi_build.jobs.api_check import check_request
from lmi_build.jobs.optimization import OPERATION, Alternative, optimization_jobs
from lmi_build.package.deploy import Deployment, request_bodies
from planned_models import ALL, RECIPES

if TYPE_CHECKING:
    from pathlib import Path

ENGINE = RECIPES / "flan-t5-xl" / "none.tensorrt-llm.yaml"
AWQ = RECIPES / "llama-2-70b" / "awq.tensorrt-llm.yaml"
FROM_S3 = "model.source=s3://my-models/llama"


def alternatives(path: Path, *more: str) -> tuple[Alternative, ...]:
    """The optimization jobs of a recipe."""
    return optimization_jobs(work_of(path, (*BASE, *more)), ROLE)


@pytest.mark.parametrize("path", [ENGINE, AWQ])
def test_an_engine_of_a_model_in_s3(path: Path) -> None:
    """The request passes the service model, and says the recipe's bounds."""
    for each in alternatives(path, FROM_S3):
        assert each.reasons == ()
        assert each.document is not None
        assert check_request(OPERATION, each.document) == ()
        (config,) = each.document["OptimizationConfigs"]
        told = config["ModelCompilationConfig"]["OverrideEnvironment"]
        assert told["OPTION_MAX_INPUT_LEN"].isdecimal()
        assert ("OPTION_QUANTIZE" in told) is (path == AWQ)
        assert each.differences


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (RECIPES / "smollm2-135m" / "none.onnxruntime.cpu.yaml", "`onnxruntime`"),
        (RECIPES / "llama-3.1-8b" / "gptq.tensorrt-llm.yaml", "`gptq`"),
        (RECIPES / "llama-2-13b" / "int8.neuronx.yaml", "`int8`"),
        (ENGINE, "takes models from S3 alone"),
    ],
)
def test_why_not(path: Path, says: str) -> None:
    """Each reason names what the recipe says."""
    for each in alternatives(path):
        assert each.document is None
        assert any(says in reason for reason in each.reasons)


def test_everything_of_the_job_section_passes_through() -> None:
    """Key, network, tags and time."""
    (each,) = alternatives(
        ENGINE,
        FROM_S3,
        "job.output_kms_key_id=alias/k",
        "job.subnets=[subnet-1]",
        "job.security_group_ids=[sg-1]",
        "job.tags.team=search",
        "job.max_runtime_seconds=999",
    )

    assert each.document is not None
    assert check_request(OPERATION, each.document) == ()
    text = json.dumps(each.document)
    for word in ("alias/k", "subnet-1", "sg-1", "search", "999"):
        assert word in text


DEPLOYED = Deployment(
    name="llama 3.1_8b",
    uri="s3://my-models/llama/1",
    tag="0.33.0-tensorrtllm0.21.0-cu128",
    region="us-east-1",
    instance_type="ml.g5.12xlarge",
    artifact_bytes=9 << 30,
    environment={"OPTION_X": "1"},
    role=ROLE,
)


@pytest.mark.parametrize(
    "deployed",
    [
        DEPLOYED,
        replace(DEPLOYED, compressed=True, uri="s3://my-models/llama/model.tar.gz"),
        replace(DEPLOYED, instance_type="ml.inf2.48xlarge", artifact_bytes=1 << 40),
        replace(DEPLOYED, name="x" * 90, startup_seconds=1),
    ],
)
def test_requests_of_an_endpoint_pass_the_whole_model(deployed: Deployment) -> None:
    """What `inspect` renders is held against patterns and maxima as well."""
    bodies = request_bodies(deployed)

    assert set(bodies) == {"CreateModel", "CreateEndpointConfig", "CreateEndpoint"}
    for operation, body in bodies.items():
        assert check_request(operation, body) == ()


def test_a_role_that_is_none_is_found() -> None:
    """Botocore's own validator takes it."""
    bodies = request_bodies(replace(DEPLOYED, role="builder"))

    (fault, *_) = check_request("CreateModel", bodies["CreateModel"])
    assert fault.path == "ExecutionRoleArn"


def test_every_shipped_recipe_has_an_answer() -> None:
    """A request or reasons, never neither."""
    for path in ALL:
        for each in alternatives(path):
            assert (each.document is None) is bool(each.reasons)
