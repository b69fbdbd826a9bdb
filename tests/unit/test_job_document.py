"""The document of a job survives its way through JSON."""

import json

import pytest

from lmi_build.digest import Digest
from lmi_build.values.job import (
    JobDocument,
    JobResult,
    job_from_json,
    job_to_json,
    result_from_json,
    result_to_json,
)

DOCUMENT = JobDocument(
    name="lmi-build-smol-0123456789ab",
    kind="processing",
    stages=(Digest("sha256:" + "1" * 64),),
    store="s3://bucket/store",
    wheel="lmi_build-0.1.0-py3-none-any.whl",
    publish={"smol": {"to": "s3://bucket/models"}},
    secrets={"HF_TOKEN": "ssm:/hub/token"},
)


def test_job_round_trip() -> None:
    """Reading what was written gives the same document."""
    text = json.dumps(job_to_json(DOCUMENT)).encode()

    assert job_from_json(text) == DOCUMENT


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"{}",
        b'{"schema": "lmi-build/job/v2"}',
        b'{"schema": "lmi-build/job/v1", "stages": []}',
        json.dumps({**job_to_json(DOCUMENT), "kind": "transform"}).encode(),
        json.dumps({**job_to_json(DOCUMENT), "extra": 1}).encode(),
    ],
)
def test_other_documents_are_refused(text: bytes) -> None:
    """What is not a job document is a ValueError, never a guess."""
    with pytest.raises(ValueError, match=r"it lacks|its schema|its kind"):
        job_from_json(text)


def test_result_round_trip() -> None:
    """Reading what was written gives the same result."""
    result = JobResult(
        name="j",
        host="algo-1",
        ok=False,
        exit_code=5,
        code="verify.gate",
        hints=("lower it",),
        stages=({"name": "a/quantize", "cached": True},),
        tools={"torch": "2.13.0"},
    )

    assert result_from_json(json.dumps(result_to_json(result)).encode()) == result
