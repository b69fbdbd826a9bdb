"""`inspect` shows requests that SageMaker takes, and refuses to show others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from faulty_s3 import FaultyS3
from job_works import ROLE
from lmi_build.cli.main import run
from lmi_build.jobs.api_check import check_request
from publishing import KEYS, s3_client

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path(__file__).parents[1] / "golden" / "sample-manifest.json"
WHERE = "s3://artifacts/sample"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An artifact's manifest in S3, for an engine of a published release."""
    document = json.loads(SAMPLE.read_text())
    document["compatibility"] |= {
        "release": "djl-tensorrtllm-0.33.0",
        "instance_type": "ml.g5.12xlarge",
    }
    document["serving"]["properties"] = {"option.rolling_batch": "trtllm"}
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with FaultyS3() as server:
        client = s3_client(server)
        client.create_bucket(Bucket="artifacts")
        client.put_object(
            Bucket="artifacts",
            Key="sample/manifest.json",
            Body=json.dumps(document).encode(),
        )
        yield server.url


def test_what_inspect_shows_the_api_takes(
    published: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Model, configuration and endpoint, by the whole service model."""
    words = ["--endpoint-url", published, "--role", ROLE, "--output", "json"]

    assert run(["inspect", WHERE, *words]) == 0

    requests = json.loads(capsys.readouterr().out)["requests"]
    assert set(requests) == {"CreateModel", "CreateEndpointConfig", "CreateEndpoint"}
    for operation, body in requests.items():
        assert check_request(operation, body) == ()


def test_a_role_that_the_pattern_refuses(
    published: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name is no ARN; the field and the pattern are told."""
    words = ["--endpoint-url", published, "--role", "builder", "--no-color"]

    assert run(["inspect", WHERE, *words]) == 2

    shown = capsys.readouterr().err
    assert "error[job.request]" in shown
    assert "ExecutionRoleArn" in shown
    assert "`builder`" in shown
