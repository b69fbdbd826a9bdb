"""A log in S3 is read as it comes, over connections that break."""

from __future__ import annotations

from typing import TYPE_CHECKING

import boto3
import pytest

from faulty_s3 import FaultyS3, Rule
from lmi_build.errors import LmiBuildError
from lmi_build.sizing.lengths import JointLengths
from lmi_build.traffic.read import ReadOptions, read_log
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAIRS = [(i % 90, i % 11) for i in range(60_000)]
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAMADEUP",
    "AWS_SECRET_ACCESS_KEY": "made-up-secret",
    "AWS_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with FaultyS3() as running:
        client = boto3.client(
            "s3",
            endpoint_url=running.url,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=KEYS["AWS_REGION"],
        )
        client.create_bucket(Bucket="logs")
        rows = "".join(f"{i},{o}\n" for i, o in PAIRS)
        body = f"input_tokens,output_tokens\n{rows}".encode()
        client.put_object(Bucket="logs", Key="day.csv", Body=body)
        yield running


def joint(server: FaultyS3, folder: Path, key: str = "day.csv") -> JointLengths:
    aws = {**KEYS, "AWS_ENDPOINT_URL_S3": server.url}
    settings = Settings(cache_dir=folder, secrets={"aws": aws})
    return read_log(f"s3://logs/{key}", ReadOptions(), settings).joint


def test_a_log_is_streamed(server: FaultyS3, tmp_path: Path) -> None:
    """Nothing is stored on the way."""
    server.forget()

    assert joint(server, tmp_path / "store") == JointLengths(PAIRS)
    assert not (tmp_path / "store").exists()


def test_a_cut_answer_goes_on_where_it_stopped(
    server: FaultyS3, tmp_path: Path
) -> None:
    server.forget()
    rule = Rule(pattern="GET /logs/day.csv", kind="cut", times=2)
    server.rules.append(rule)

    assert joint(server, tmp_path) == JointLengths(PAIRS)
    assert rule.struck == 2


def test_no_object_is_said(server: FaultyS3, tmp_path: Path) -> None:
    server.forget()
    with pytest.raises(LmiBuildError) as caught:
        joint(server, tmp_path, "night.csv")

    assert caught.value.code == "source.s3-missing"


def test_offline_is_offline(tmp_path: Path) -> None:
    with pytest.raises(LmiBuildError) as caught:
        read_log(
            "s3://logs/day.csv",
            ReadOptions(),
            Settings(cache_dir=tmp_path, offline=True),
        )

    assert caught.value.code == "traffic.offline"
