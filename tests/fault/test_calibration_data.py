"""Laws of calibration data on a hub and on S3: what is pinned, how it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from calibration_data import bring, pinned, stage_job
from faulty_s3 import FaultyS3
from hub_server import COMMIT, TOKEN, Hub, Rule, serve_hub
from lmi_build.errors import LmiBuildError
from lmi_build.events import ignore
from lmi_build.quantizers.calibration import calibration_params
from lmi_build.sources import download, hub
from lmi_build.sources.dataset import dataset_secrets, dataset_stage_params
from lmi_build.sources.dataset_fetch import run
from lmi_build.values.recipe import CalibrationSpec
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.values.dataset import DatasetFacts

REPO = "acme/rows"
TRAIN = b'{"text": "one two three"}\n' * 4000
NEXT_COMMIT = "f" * 40
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAMADEUP",
    "AWS_SECRET_ACCESS_KEY": "made-up-secret",
    "AWS_REGION": "us-east-1",
}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(hub.retry, "__kwdefaults__", {"first_wait_seconds": 0.001})
    for name in ("AWS_PROFILE", "HTTP_PROXY", "http_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Hub]:
    files = {
        "README.md": b"# rows",
        "data/train-0.jsonl": TRAIN,
        "data/train-1.jsonl.gz": b"packed",
        "data/test-0.jsonl": b"{}",
    }
    with serve_hub({f"datasets/{REPO}": files}) as running:
        yield running


def at(server: Hub, folder: Path, **more: Any) -> Settings:
    secrets = {"hub": {"HF_TOKEN": TOKEN}}
    return Settings(
        cache_dir=folder / "cache", hf_endpoint=server.url, secrets=secrets, **more
    )


def facts_of(name: str, folder: Path, settings: Settings) -> DatasetFacts:
    facts = pinned(CalibrationSpec(dataset=name), folder, settings).facts
    assert facts is not None
    return facts


def error_of(action: Any) -> LmiBuildError:
    with pytest.raises(LmiBuildError) as caught:
        action()
    return caught.value


def test_a_repository_is_pinned_and_brought(server: Hub, tmp_path: Path) -> None:
    """Commit and digests are known before a byte of data; then the bytes arrive."""
    settings = at(server, tmp_path)
    facts = facts_of(f"hub:{REPO}", tmp_path, settings)
    asked = dict(server.served)

    data = bring(facts, tmp_path, settings)

    assert facts.revision == COMMIT
    assert facts.names == ("data/train-0.jsonl", "data/train-1.jsonl.gz")
    assert [fact.digest.partition(":")[0] for fact in facts.files] == [
        "git-sha1",
        "sha256",
    ]
    assert asked == {}
    assert dataset_secrets(facts) == ("hub",)
    assert (data / "data/train-0.jsonl").read_bytes() == TRAIN
    assert (data / "data/train-1.jsonl.gz").read_bytes() == b"packed"
    assert "data/test-0.jsonl" not in server.served


def test_a_branch_and_its_commit_are_one_key(server: Hub, tmp_path: Path) -> None:
    """What is in the key is content; a branch that moves to the same is the same."""
    settings = at(server, tmp_path)
    keys = [
        dataset_stage_params(facts_of(name, tmp_path, settings))
        for name in (f"hub:{REPO}", f"hub:{REPO}@main", f"hub:{REPO}@{COMMIT}")
    ]
    server.branches["main"] = NEXT_COMMIT
    keys.append(dataset_stage_params(facts_of(f"hub:{REPO}", tmp_path, settings)))
    server.repos[f"datasets/{REPO}"]["data/train-0.jsonl"] = b"other"
    server.branches["main"] = "e" * 40
    moved = dataset_stage_params(facts_of(f"hub:{REPO}", tmp_path, settings))

    assert all(key == keys[0] for key in keys)
    assert moved != keys[0]
    assert REPO not in json.dumps(moved)


def test_offline_uses_what_was_resolved(server: Hub, tmp_path: Path) -> None:
    """A warm cache answers; a cold one says what to do; nothing is asked."""
    warm = at(server, tmp_path)
    known = facts_of(f"hub:{REPO}", tmp_path, warm)
    asked = len(server.requests)
    offline = replace(warm, offline=True)
    again = facts_of(f"hub:{REPO}", tmp_path, offline)
    cold = at(server, tmp_path / "cold", offline=True)
    unknown = error_of(lambda: facts_of(f"hub:{REPO}", tmp_path, cold))
    unfetched = error_of(lambda: run(stage_job(again, tmp_path, offline), ignore))

    assert again == known
    assert unknown.code == unfetched.code == "source.offline"
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("kind", "code"),
    [("gated", "source.gated"), ("unauthorized", "source.repo-missing")],
)
def test_a_gate_is_explained(server: Hub, tmp_path: Path, kind: str, code: str) -> None:
    """Where to accept a licence is the page of the data set, not of a model."""
    server.rules.append(Rule("", kind, times=100))

    error = error_of(lambda: facts_of(f"hub:{REPO}", tmp_path, at(server, tmp_path)))

    assert error.code == code
    assert any(f"{server.url}/datasets/{REPO}" in hint for hint in error.hints)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("hub:acme/nothing", "source.repo-missing"),
        (f"hub:{REPO}@gone", "source.revision-missing"),
        (f"hub:{REPO}/gone.jsonl", "calibration.no-data-files"),
        (f"hub:{REPO}/data/valid-*", "calibration.no-data-files"),
    ],
)
def test_what_is_not_there_is_named(
    server: Hub, tmp_path: Path, name: str, code: str
) -> None:
    """Repository, revision, file: each its own error."""
    error = error_of(lambda: facts_of(name, tmp_path, at(server, tmp_path)))

    assert error.code == code
    assert error.hints


def test_drops_are_outlasted(server: Hub, tmp_path: Path) -> None:
    """A connection that breaks costs the rest, not the start."""
    settings = at(server, tmp_path)
    facts = facts_of(f"hub:{REPO}/data/train-0.jsonl", tmp_path, settings)
    server.rules.append(Rule("train-0", "drop", times=3, after=20_000))

    data = bring(facts, tmp_path, settings)

    assert (data / "data/train-0.jsonl").read_bytes() == TRAIN
    assert server.served["data/train-0.jsonl"] < 2 * len(TRAIN)


def test_wrong_bytes_are_never_kept(server: Hub, tmp_path: Path) -> None:
    """Bytes that differ from the digest, twice, end the stage with nothing kept."""
    settings = at(server, tmp_path)
    facts = facts_of(f"hub:{REPO}/data/train-0.jsonl", tmp_path, settings)
    server.rules.append(Rule("train-0", "flip", times=2))
    job = stage_job(facts, tmp_path, settings)

    error = error_of(lambda: run(job, ignore))

    assert error.code == "source.corrupt-download"
    assert list(job.out.iterdir()) == []


def test_a_file_that_vanished_is_named(server: Hub, tmp_path: Path) -> None:
    """A repository rewritten between plan and build."""
    settings = at(server, tmp_path)
    facts = facts_of(f"hub:{REPO}/data/train-0.jsonl", tmp_path, settings)
    del server.repos[f"datasets/{REPO}"]["data/train-0.jsonl"]

    error = error_of(lambda: bring(facts, tmp_path, settings))

    assert error.code == "source.file-missing"
    assert "data/train-0.jsonl" in error.message


@pytest.fixture(scope="module")
def running() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture
def bucket(running: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    client = boto3.client(
        "s3",
        endpoint_url=running.url,
        aws_access_key_id="AKIAMADEUP",
        aws_secret_access_key="made-up-secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="data")
    client.put_object(Bucket="data", Key="cal/rows.jsonl", Body=TRAIN)
    # The worker reads its credentials from the environment it is given.
    for name, value in {**KEYS, "AWS_ENDPOINT_URL_S3": running.url}.items():
        monkeypatch.setenv(name, value)
    running.forget()
    yield client
    running.forget()
    for entry in client.list_objects_v2(Bucket="data").get("Contents", ()):
        client.delete_object(Bucket="data", Key=entry["Key"])
    client.delete_bucket(Bucket="data")
    client.close()


SOURCE = "s3://data/cal/rows.jsonl"


def on_s3(running: FaultyS3, folder: Path, **more: Any) -> Settings:
    aws = {**KEYS, "AWS_ENDPOINT_URL_S3": running.url}
    return Settings(cache_dir=folder / "cache", secrets={"aws": aws}, **more)


def test_an_object_is_pinned_and_brought(
    bucket: Any, running: FaultyS3, tmp_path: Path
) -> None:
    """One head at plan time, no byte of data; the key holds version and size."""
    settings = on_s3(running, tmp_path)
    facts = facts_of(SOURCE, tmp_path, settings)
    planned = list(running.log)

    data = bring(facts, tmp_path, settings)

    assert [line.split("?")[0] for line in planned] == ["HEAD /data/cal/rows.jsonl"]
    assert facts.files[0].digest.startswith("s3-etag:")
    assert facts.files[0].size == len(TRAIN)
    assert dataset_secrets(facts) == ("aws",)
    assert "cal/rows" not in json.dumps(dataset_stage_params(facts))
    assert (data / "data.jsonl").read_bytes() == TRAIN


def test_an_object_with_a_checksum_is_known_by_it(
    bucket: Any, running: FaultyS3, tmp_path: Path
) -> None:
    """A stored SHA-256 is the key: the same bytes elsewhere are the same data."""
    (tmp_path / "rows.jsonl").write_bytes(TRAIN)
    bucket.put_object(
        Bucket="data", Key="cal/sum.jsonl", Body=TRAIN, ChecksumAlgorithm="SHA256"
    )
    settings = on_s3(running, tmp_path)

    remote = pinned(
        CalibrationSpec(dataset="s3://data/cal/sum.jsonl"), tmp_path, settings
    )
    local = pinned(CalibrationSpec(dataset="./rows.jsonl"), tmp_path, settings)

    assert calibration_params(remote) == calibration_params(local)


def test_an_object_replaced_since_the_plan_is_refused(
    bucket: Any, running: FaultyS3, tmp_path: Path
) -> None:
    """Every read names the version that was planned."""
    settings = on_s3(running, tmp_path)
    facts = facts_of(SOURCE, tmp_path, settings)
    bucket.put_object(Bucket="data", Key="cal/rows.jsonl", Body=TRAIN[::-1])

    error = error_of(lambda: bring(facts, tmp_path, settings))

    assert error.code == "source.changed"


def test_a_cut_answer_goes_on(bucket: Any, running: FaultyS3, tmp_path: Path) -> None:
    """Half an answer is continued, not started again."""
    settings = on_s3(running, tmp_path)
    facts = facts_of(SOURCE, tmp_path, settings)
    running.rule(r"GET /data/cal/rows", "cut", times=1)

    data = bring(facts, tmp_path, settings)

    assert (data / "data.jsonl").read_bytes() == TRAIN


@pytest.mark.parametrize(
    ("key", "code"),
    [("s3://data/cal/gone.jsonl", "source.s3-missing"), (SOURCE, "source.s3-denied")],
)
def test_refusals_are_explained(
    bucket: Any, running: FaultyS3, tmp_path: Path, key: str, code: str
) -> None:
    """Missing and forbidden are told apart."""
    if code == "source.s3-denied":
        running.rule("HEAD", "access-denied", times=9)

    error = error_of(lambda: facts_of(key, tmp_path, on_s3(running, tmp_path)))

    assert error.code == code


def test_offline_remembers_the_object(
    bucket: Any, running: FaultyS3, tmp_path: Path
) -> None:
    """What was planned once is planned again without the network."""
    known = facts_of(SOURCE, tmp_path, on_s3(running, tmp_path))
    running.forget()

    assert facts_of(SOURCE, tmp_path, on_s3(running, tmp_path, offline=True)) == known
    cold = on_s3(running, tmp_path / "cold", offline=True)
    assert error_of(lambda: facts_of(SOURCE, tmp_path, cold)).code == "source.offline"
    assert running.log == []
