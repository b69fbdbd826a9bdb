"""What SageMaker's faults become, over real HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmi_build.errors import RemoteFailed, UsageInvalid
from lmi_build.jobs import service as aws
from lmi_build.values.settings import Settings
from sagemaker_server import REGION, SageMakerServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = aws.Patience(attempts=3, timeout_seconds=5, poll_seconds=0.01)
REQUEST = {
    "ProcessingJobName": "tiny-abc",
    "RoleArn": "arn:aws:iam::123456789012:role/jobs",
    "AppSpecification": {"ImageUri": "123456789012.dkr.ecr/x:1"},
    "ProcessingResources": {
        "ClusterConfig": {
            "InstanceCount": 2,
            "InstanceType": "ml.m5.2xlarge",
            "VolumeSizeInGB": 30,
        }
    },
    "ProcessingInputs": [
        {
            "InputName": "job",
            "S3Input": {
                "S3Uri": "s3://bucket/store/inputs/00/",
                "S3DataType": "S3Prefix",
            },
        }
    ],
}


@pytest.fixture
def server() -> Iterator[SageMakerServer]:
    with SageMakerServer() as running:
        yield running


@pytest.fixture
def service(server: SageMakerServer, tmp_path: Path) -> Iterator[aws.Service]:
    found = aws.connect(server.settings(tmp_path), patience=QUICK)
    yield found
    found.close()


def caught(service: aws.Service) -> RemoteFailed:
    with pytest.raises(RemoteFailed) as error:
        aws.create(service, "processing", REQUEST)
    assert error.value.exit_code == 6
    return error.value


@pytest.mark.parametrize(
    ("code", "slug", "word"),
    [
        ("ExpiredTokenException", "remote.expired-token", "expired"),
        ("UnrecognizedClientException", "remote.bad-credentials", "invalid"),
        ("AccessDeniedException", "job.denied", "sagemaker:CreateProcessingJob"),
        ("ValidationException", "job.refused", "assume role"),
    ],
)
def test_a_refusal_is_named_at_once(
    server: SageMakerServer, service: aws.Service, code: str, slug: str, word: str
) -> None:
    server.fault("Create", code)
    error = caught(service)

    assert error.code == slug
    assert word in error.message
    assert server.asked("CreateProcessingJob") == 1


def test_a_denied_action_is_named_in_the_hint(
    server: SageMakerServer, service: aws.Service
) -> None:
    server.fault("Create", "AccessDeniedException")

    assert (
        "allow this identity sagemaker:CreateProcessingJob" in caught(service).hints[0]
    )


def test_a_quota_is_named_with_the_place_to_ask(
    server: SageMakerServer, service: aws.Service
) -> None:
    server.fault("Create", "ResourceLimitExceeded", times=9)
    error = caught(service)

    assert error.code == "job.quota"
    assert "`ml.m5.2xlarge for processing job usage` (now 0)" in error.hints[0]
    assert (
        f"https://{REGION}.console.aws.amazon.com/servicequotas/home/services/sagemaker"
        in error.hints[0]
    )


@pytest.mark.parametrize("code", ["ThrottlingException", "InternalFailure"])
def test_what_passes_is_tried_again(
    server: SageMakerServer, service: aws.Service, code: str
) -> None:
    server.fault("Create", code)
    arn = aws.create(service, "processing", REQUEST)

    assert arn.endswith(":processing-job/tiny-abc")
    assert server.asked("CreateProcessingJob") == 2


def test_throttling_ends_with_its_own_error(
    server: SageMakerServer, service: aws.Service
) -> None:
    server.fault("Create", "ThrottlingException", times=99)
    error = caught(service)

    assert error.code == "remote.throttled"
    assert "after 3 tries" in error.message


def test_a_name_is_taken_once(server: SageMakerServer, service: aws.Service) -> None:
    aws.create(service, "processing", REQUEST)

    assert caught(service).code == "job.exists"


@pytest.mark.parametrize("kind", ["processing", "training"])
def test_a_job_that_is_not_there_is_none(service: aws.Service, kind: str) -> None:
    assert aws.describe(service, kind, "nobody") is None


def test_a_description_says_where_its_channel_lies(service: aws.Service) -> None:
    aws.create(service, "processing", REQUEST)
    state = aws.describe(service, "processing", "tiny-abc")

    assert state is not None
    assert state.status == "InProgress"
    assert not state.has_ended
    assert (state.instance, state.num_hosts) == ("ml.m5.2xlarge", 2)
    assert state.channel_uri == "s3://bucket/store/inputs/00/"


def test_a_job_that_has_ended_may_be_stopped(
    server: SageMakerServer, service: aws.Service
) -> None:
    aws.create(service, "processing", REQUEST)
    server.jobs["tiny-abc"].next = ["Completed"]
    aws.describe(service, "processing", "tiny-abc")
    aws.stop(service, "processing", "tiny-abc")

    assert server.jobs["tiny-abc"].status == "Completed"


def test_a_long_list_is_read_in_pages(
    server: SageMakerServer, service: aws.Service
) -> None:
    for number in range(130):
        aws.create(
            service, "processing", aws.named("processing", REQUEST, f"a-{number}")
        )
    found = aws.list_summaries(service, "processing", name_contains="a-", limit=120)

    assert len(found) == 120
    assert server.asked("ListProcessingJobs") == 2


def test_no_credentials_is_said_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    aws_group = {"AWS_REGION": REGION, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    bare = Settings(cache_dir=tmp_path, secrets={"aws": aws_group})
    service = aws.connect(bare, patience=QUICK)

    assert caught(service).code == "remote.no-credentials"


def test_no_region_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UsageInvalid) as error:
        aws.connect(Settings(cache_dir=tmp_path), patience=QUICK)

    assert error.value.code == "job.no-region"


def test_a_service_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with SageMakerServer() as gone:
        settings = gone.settings(tmp_path)
    service = aws.connect(settings, patience=aws.Patience(attempts=1))

    assert caught(service).code == "remote.unreachable"
