"""Addresses, names and documents of jobs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.digest import Digest
from lmi_build.errors import StoreCorrupt
from lmi_build.jobs.console import console_url, logs_url
from lmi_build.jobs.shared import SharedStore, open_shared, store_of_channel
from lmi_build.jobs.submission import (
    StageRef,
    Submission,
    SubmittedJob,
    attempt_name,
    attempt_of,
    submission_from_json,
    submission_to_json,
)
from lmi_build.jobs.upload import folder_key, upload_folder
from publishing import QUICK
from sagemaker_server import SageMakerServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# botocore's model: ProcessingJobName and TrainingJobName.
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
names = st.from_regex(NAME, fullmatch=True).filter(lambda name: len(name) <= 63)


@given(names, st.integers(min_value=1, max_value=99))
def test_an_attempt_has_a_name_that_leads_back(name: str, attempt: int) -> None:
    found = attempt_name(name, attempt)

    assert len(found) <= 63
    assert NAME.fullmatch(found)
    assert attempt_of(found, name) == attempt


def test_another_job_is_no_attempt() -> None:
    assert attempt_of("tiny-quantize-try22", "tiny-quantize") == 22
    assert attempt_of("tiny-quantize-gpu", "tiny-quantize") is None
    assert attempt_of("tiny-quantize-try1", "tiny-quantize") is None
    assert attempt_of("tiny-quantize-2", "tiny-quantize") is None
    assert attempt_of("other-try2", "tiny") is None


@pytest.mark.parametrize(
    ("kind", "region", "url"),
    [
        (
            "processing",
            "eu-west-1",
            (
                "https://eu-west-1.console.aws.amazon.com/sagemaker/home"
                "?region=eu-west-1#/processing-jobs/n"
            ),
        ),
        (
            "training",
            "cn-north-1",
            (
                "https://cn-north-1.console.amazonaws.cn/sagemaker/home"
                "?region=cn-north-1#/jobs/n"
            ),
        ),
        (
            "processing",
            "us-gov-west-1",
            (
                "https://us-gov-west-1.console.amazonaws-us-gov.com/sagemaker/home"
                "?region=us-gov-west-1#/processing-jobs/n"
            ),
        ),
        ("processing", "us-iso-east-1", ""),
    ],
)
def test_a_job_has_its_page_in_its_partition(kind: str, region: str, url: str) -> None:
    assert console_url(kind, "n", region) == url
    assert bool(logs_url(kind, "n", region)) is bool(url)


def test_a_submission_is_read_as_it_was_written() -> None:
    one = SubmittedJob(
        name="a",
        kind="processing",
        request={"ProcessingJobName": "a"},
        stages=(StageRef(name="m/fetch", key=Digest("sha256:00")),),
    )
    two = SubmittedJob(
        name="b",
        kind="training",
        request={"TrainingJobName": "b"},
        stages=(StageRef(name="m/compile", key=Digest("sha256:01")),),
        inputs=(Digest("sha256:00"),),
        after=("a",),
        num_hosts=3,
    )
    submission = Submission(
        recipe="r", store="s3://b/p", region="eu-west-1", jobs=(one, two)
    )
    text = submission_to_json(submission)

    assert submission_from_json(text) == submission
    assert submission_to_json(submission_from_json(text)) == text
    assert submission.job("b-try2") == two


@pytest.mark.parametrize("text", [b"[]", b"{}", b"{", b'{"schema": "other"}'])
def test_another_document_is_no_submission(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"schema|Expecting|part"):
        submission_from_json(text)


def test_a_channel_tells_its_store() -> None:
    assert store_of_channel("s3://b/p/inputs/00ff/") == "s3://b/p"
    assert store_of_channel("s3://b/inputs/00ff") == "s3://b"
    assert store_of_channel("s3://b/p/other/00ff") == ""


@pytest.fixture
def server() -> Iterator[SageMakerServer]:
    with SageMakerServer() as running:
        yield running


@pytest.fixture
def shared(server: SageMakerServer, tmp_path: Path) -> Iterator[SharedStore]:
    bucket = server.make_bucket()
    settings = server.settings(tmp_path)
    with open_shared(f"s3://{bucket}/store", settings, transfer=QUICK) as found:
        yield found


def bucket_of(shared: SharedStore) -> str:
    return shared.uri.split("/")[2]


FILES = {"job.json": b"{}", "plan.json": b"p" * 70_000, "x.whl": b"w" * 200_000}


def test_a_folder_is_sent_once(server: SageMakerServer, shared: SharedStore) -> None:
    first = upload_folder(shared.place, FILES)
    server.forget()
    again = upload_folder(shared.place, FILES)

    assert (first.sent_bytes, first.num_sent) == (270_002, 3)
    assert (again.sent_bytes, again.kept_bytes, again.num_sent) == (0, 270_002, 0)
    assert sum(server.sent.values()) == 0
    assert server.count("PUT") == 0


def test_a_large_file_of_two_folders_leaves_this_machine_once(
    server: SageMakerServer, shared: SharedStore
) -> None:
    upload_folder(shared.place, FILES)
    server.forget()
    other = upload_folder(shared.place, {**FILES, "job.json": b'{"a": 1}'})
    client = server.client("s3")
    key = "store/" + folder_key({**FILES, "job.json": b'{"a": 1}'}) + "x.whl"
    body = client.get_object(Bucket=bucket_of(shared), Key=key)["Body"].read()

    assert other.sent_bytes == len(b'{"a": 1}')
    assert sum(server.sent.values()) == other.sent_bytes
    assert body == FILES["x.whl"]


def test_what_is_not_its_name_says_so(
    server: SageMakerServer, shared: SharedStore
) -> None:
    key = "store/" + folder_key(FILES) + "job.json"
    server.client("s3").put_object(
        Bucket=bucket_of(shared), Key=key, Body=b"something else"
    )
    with pytest.raises(StoreCorrupt) as error:
        upload_folder(shared.place, FILES)

    assert error.value.code == "job.foreign-input"
