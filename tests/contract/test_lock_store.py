"""Versions of a job's container, found by the job's name in a shared store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from faulty_s3 import FaultyS3
from lmi_build.errors import RemoteFailed, UsageInvalid
from lmi_build.relock import shared_result
from lmi_build.values.job import JobResult, result_to_json
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

STORE = "s3://team-store/lmi"
RESULT = JobResult(
    name="tiny-job",
    host="algo-2",
    ok=False,
    exit_code=3,
    tools={"torch": "2.7.1"},
)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    """An S3 server with a bucket, in which three hosts left what they could."""
    import boto3

    with FaultyS3() as running:
        client: Any = boto3.client(
            "s3",
            region_name="us-east-1",
            endpoint_url=running.url,
            aws_access_key_id="made-up",
            aws_secret_access_key="made-up",
        )
        client.create_bucket(Bucket="team-store")
        silent = replace(RESULT, host="algo-1", tools={})
        for name, body in {
            "algo-1.json": json.dumps(result_to_json(silent)),
            "algo-2.json": json.dumps(result_to_json(RESULT)),
            "algo-3.json": "{",
            "job.log": "text",
        }.items():
            client.put_object(
                Bucket="team-store", Key=f"lmi/jobs/tiny-job/{name}", Body=body.encode()
            )
        client.close()
        yield running


@pytest.fixture
def settings(server: FaultyS3) -> Settings:
    """Somebody who may read it."""
    aws = {
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_ENDPOINT_URL_S3": server.url,
    }
    return Settings(cache_dir=Path("/nowhere"), store=STORE, secrets={"aws": aws})


def test_the_first_host_that_says(settings: Settings) -> None:
    """Hosts that say nothing, and what is no result, are passed over."""
    assert shared_result("tiny-job", settings) == RESULT


def test_a_job_that_left_nothing(settings: Settings) -> None:
    """A job without a result is told with its store."""
    with pytest.raises(UsageInvalid, match=f"{STORE} has no result of a job other"):
        shared_result("other", settings)


def test_a_store_that_is_not_there(settings: Settings) -> None:
    """A bucket that does not exist is a remote failure."""
    with pytest.raises(RemoteFailed) as caught:
        shared_result("tiny-job", replace(settings, store="s3://no-such-bucket/lmi"))

    assert caught.value.exit_code == 6
