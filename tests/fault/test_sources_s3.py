"""Laws of models in S3: identity, range reads, and what failures look like."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from faulty_s3 import FaultyS3
from lmi_build.errors import LmiBuildError
from lmi_build.events import ignore
from lmi_build.sources import download, hub
from lmi_build.sources.fetch import run
from lmi_build.sources.resolve import (
    fetch_settings,
    fetch_stage_params,
    resolve_model,
)
from lmi_build.spi import Job
from lmi_build.values.recipe import ModelSpec
from lmi_build.values.settings import Settings
from tiny_models import SHAPES, gguf, hf_files, safetensors, sentence_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lmi_build.values.model import ModelFacts

SOURCE = "s3://models/tiny/llama"
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAMADEUP",
    "AWS_SECRET_ACCESS_KEY": "made-up-secret",
    "AWS_REGION": "us-east-1",
}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(hub.retry, "__kwdefaults__", {"first_wait_seconds": 0.001})
    for name in ("AWS_PROFILE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def running() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture
def server(running: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    client = put_client(running)
    client.create_bucket(Bucket="models")
    for name, data in hf_files().items():
        client.put_object(Bucket="models", Key=f"tiny/llama/{name}", Body=data)
    # The worker reads its credentials from the environment it is given.
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
    running.forget()
    yield running
    running.forget()
    empty(client)


def put_client(server: FaultyS3) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id="AKIAMADEUP",
        aws_secret_access_key="made-up-secret",
        region_name="us-east-1",
    )


def empty(client: Any) -> None:
    """Moto's buckets outlive its server."""
    for bucket in client.list_buckets()["Buckets"]:
        listed = client.list_objects_v2(Bucket=bucket["Name"])
        for entry in listed.get("Contents", ()):
            client.delete_object(Bucket=bucket["Name"], Key=entry["Key"])
        client.delete_bucket(Bucket=bucket["Name"])


def settings(server: FaultyS3, folder: Path, **more: Any) -> Settings:
    aws = {**KEYS, "AWS_ENDPOINT_URL_S3": server.url}
    return Settings(cache_dir=folder / "cache", secrets={"aws": aws}, **more)


def resolve(
    server: FaultyS3, folder: Path, source: str = SOURCE, **more: Any
) -> ModelFacts:
    return resolve_model(
        ModelSpec(source=source),
        settings=settings(server, folder, **more),
        base=folder,
    )


def make_job(facts: ModelFacts, server: FaultyS3, folder: Path) -> Job:
    out, state = folder / "out", folder / "state"
    out.mkdir()
    state.mkdir()
    return Job(
        stage="tiny/fetch",
        params=fetch_stage_params(facts, ModelSpec(source=facts.source)),
        inputs={},
        out=out,
        state=state,
        settings=fetch_settings(facts, settings(server, folder)),
    )


def error_of(action: Any) -> LmiBuildError:
    with pytest.raises(LmiBuildError) as caught:
        action()

    assert caught.value.hints
    assert "made-up-secret" not in f"{caught.value.message} {caught.value.hints}"
    return caught.value


def test_a_prefix_is_a_folder(server: FaultyS3, tmp_path: Path) -> None:
    facts = resolve(server, tmp_path)

    assert facts.kind == "s3"
    assert {t.name: t.shape for t in facts.tensors} == SHAPES
    assert len(facts.files) == 6
    assert all(f.digest.startswith("s3-etag:") for f in facts.files)


def test_a_stored_sha256_is_the_identity_of_an_object(
    server: FaultyS3, tmp_path: Path
) -> None:
    data = hf_files()["model.safetensors"]
    digest = hashlib.sha256(data)
    put_client(server).put_object(
        Bucket="models",
        Key="tiny/llama/model.safetensors",
        Body=data,
        ChecksumAlgorithm="SHA256",
    )
    facts = resolve(server, tmp_path)
    found = {f.path: f.digest for f in facts.files}

    assert found["model.safetensors"] == f"sha256:{digest.hexdigest()}"


def test_an_unchanged_prefix_is_listed_and_not_read(
    server: FaultyS3, tmp_path: Path
) -> None:
    first = resolve(server, tmp_path)
    server.forget()

    assert resolve(server, tmp_path) == first
    assert len(server.log) == 1


def test_offline_uses_the_last_resolution(server: FaultyS3, tmp_path: Path) -> None:
    first = resolve(server, tmp_path)
    server.forget()

    assert resolve(server, tmp_path, offline=True) == first
    assert server.log == []
    assert (
        error_of(
            lambda: resolve(server, tmp_path, "s3://models/other", offline=True)
        ).code
        == "source.offline"
    )


def test_fetch_brings_exactly_the_planned_files(
    server: FaultyS3, tmp_path: Path
) -> None:
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    run(job, ignore)
    found = {p.name: p.read_bytes() for p in job.out.iterdir()}

    assert found == {n: d for n, d in hf_files().items() if n in found}
    assert len(found) == 6


def test_a_gguf_object_is_read_by_its_header_and_converted(
    server: FaultyS3, tmp_path: Path
) -> None:
    source = "s3://models/x/tiny.gguf"
    put_client(server).put_object(Bucket="models", Key="x/tiny.gguf", Body=gguf())
    facts = resolve(server, tmp_path, source)
    job = make_job(facts, server, tmp_path)
    run(job, ignore)
    config = json.loads((job.out / "config.json").read_text())

    assert facts.kind == "gguf"
    assert config == facts.config
    assert (job.out / "tokenizer.json").is_file()


def test_an_object_replaced_since_the_plan_is_refused(
    server: FaultyS3, tmp_path: Path
) -> None:
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    put_client(server).put_object(
        Bucket="models", Key="tiny/llama/LICENSE", Body=b"Apache-2.1"
    )

    assert error_of(lambda: run(job, ignore)).code == "source.changed"


def test_an_answer_cut_in_the_middle_is_continued(
    server: FaultyS3, tmp_path: Path
) -> None:
    data = safetensors(SHAPES | {"model.layers.0.extra.weight": (1000, 100)})
    put_client(server).put_object(
        Bucket="models", Key="tiny/llama/model.safetensors", Body=data
    )
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    server.forget()
    server.rule("GET .*model.safetensors", "cut", times=1)
    run(job, ignore)
    ranges = [headers["range"] for headers in server.headers if "range" in headers]

    assert (job.out / "model.safetensors").read_bytes() == data
    assert len(ranges) == 1
    assert int(ranges[0].removeprefix("bytes=").removesuffix("-")) > 0


@pytest.mark.parametrize(
    ("kind", "code", "exit_code"),
    [
        ("access-denied", "source.s3-denied", 6),
        ("expired-token", "source.s3-expired", 6),
        ("slow-down", "source.unreachable", 6),
        ("reset", "source.unreachable", 6),
    ],
)
def test_each_refusal_of_s3_has_its_own_answer(
    kind: str, code: str, exit_code: int, server: FaultyS3, tmp_path: Path
) -> None:
    server.rule("GET /models/tiny", kind, times=99)
    error = error_of(lambda: resolve(server, tmp_path))

    assert error.code == code
    assert error.exit_code == exit_code


def test_a_short_disturbance_is_not_noticed(server: FaultyS3, tmp_path: Path) -> None:
    server.rule("GET /models", "slow-down", times=2)

    assert resolve(server, tmp_path).kind == "s3"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("s3://models/nothing/here", "source.s3-missing"),
        ("s3://models/nothing.gguf", "source.s3-missing"),
        ("s3://no-such-bucket/x", "source.s3-missing"),
        ("s3://", "source.bad-name"),
        ("s3:///x", "source.bad-name"),
        ("s3://models/../x", "source.bad-name"),
        ("s3://Bad_Bucket!/x", "source.bad-name"),
    ],
)
def test_what_is_not_in_s3_is_told_apart(
    source: str, code: str, server: FaultyS3, tmp_path: Path
) -> None:
    assert error_of(lambda: resolve(server, tmp_path, source)).code == code


def test_a_sentence_encoder_brings_the_settings_of_its_modules(
    server: FaultyS3, tmp_path: Path
) -> None:
    """They lie one level below the prefix, and nothing else of there is taken."""
    client = put_client(server)
    for name, data in sentence_files().items():
        client.put_object(Bucket="models", Key=f"tiny/llama/{name}", Body=data)
    job = make_job(resolve(server, tmp_path), server, tmp_path)
    run(job, ignore)

    assert (job.out / "1_Pooling" / "config.json").is_file()
    assert [path.name for path in (job.out / "1_Pooling").iterdir()] == ["config.json"]
