"""The folders that a simulated host gets, and the faults it can be given."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from lmi_build.errors import RemoteFailed, UsageInvalid
from lmi_build.jobs.simulate import Wish, simulate
from lmi_build.jobs.simulation.fault import FORMS, parse_fault
from lmi_build.jobs.simulation.server import s3_server
from lmi_build.jobs.simulation.tree import Host, lay_out, read_message, upload_outputs
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUCKET = "tree"
OBJECTS = {"in/a.txt": b"a", "in/deep/b.txt": b"b", "in/c.txt": b"c", "index": b"x"}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A bucket with a few objects."""
    with s3_server() as url:
        found = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )
        found.create_bucket(Bucket=BUCKET)
        for key, data in OBJECTS.items():
            found.put_object(Bucket=BUCKET, Key=key, Body=data)
        manifest = [{"prefix": f"s3://{BUCKET}/in/"}, "deep/b.txt", "c.txt"]
        body = json.dumps(manifest).encode()
        found.put_object(Bucket=BUCKET, Key="list.manifest", Body=body)
        yield found


def processing(uri: str, kind: str = "S3Prefix", **more: str) -> dict[str, Any]:
    """A request with one channel and one output."""
    source = {
        "S3Uri": uri,
        "S3DataType": kind,
        "LocalPath": "/opt/ml/processing/input/x",
    }
    output = {
        "S3Uri": f"s3://{BUCKET}/out/",
        "LocalPath": "/opt/ml/processing/output/y",
    }
    return {
        "ProcessingJobName": "j",
        "ProcessingInputs": [{"InputName": "x", "S3Input": {**source, **more}}],
        "ProcessingOutputConfig": {"Outputs": [{"S3Output": output}]},
    }


def host(root: Path, name: str = "algo-1", kind: str = "processing") -> Host:
    """One of two."""
    return Host(name=name, hosts=("algo-1", "algo-2"), root=root, kind=kind)


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("uri", "kind", "expected"),
    [
        ("in/", "S3Prefix", {"a.txt", "deep/b.txt", "c.txt"}),
        # A prefix of keys, not a folder: `in` also begins `index`.
        ("in", "S3Prefix", {"in/a.txt", "in/deep/b.txt", "in/c.txt", "index"}),
        ("in/a.txt", "S3Prefix", {"a.txt"}),
        ("list.manifest", "ManifestFile", {"deep/b.txt", "c.txt"}),
    ],
)
def test_channels_come_as_sagemaker_brings_them(
    tmp_path: Path, client: Any, uri: str, kind: str, expected: set[str]
) -> None:
    """A prefix with all below it, a manifest with what it lists, names relative."""
    request = processing(f"s3://{BUCKET}/{uri}", kind)

    lay_out(host(tmp_path), request, client)

    assert set(files(tmp_path / "processing/input/x")) == expected


def test_sharded_channels_are_split_over_hosts(tmp_path: Path, client: Any) -> None:
    """Every object goes to one host, none to two."""
    request = processing(f"s3://{BUCKET}/in/", S3DataDistributionType="ShardedByS3Key")
    found = []
    for name in ("algo-1", "algo-2"):
        lay_out(host(tmp_path / name, name), request, client)
        found.append(set(files(tmp_path / name / "processing/input/x")))

    assert found[0] | found[1] == {"a.txt", "deep/b.txt", "c.txt"}
    assert not found[0] & found[1]
    assert all(found)


def test_an_empty_channel_is_an_error(tmp_path: Path, client: Any) -> None:
    with pytest.raises(RemoteFailed) as caught:
        lay_out(host(tmp_path), processing(f"s3://{BUCKET}/nothing/"), client)

    assert caught.value.code == "job.no-input"


def test_the_configuration_is_sagemakers(tmp_path: Path, client: Any) -> None:
    """The request is echoed; each host is told its name and those of all."""
    request = processing(f"s3://{BUCKET}/in/")

    lay_out(host(tmp_path, "algo-2"), request, client)

    config = json.loads((tmp_path / "config/processingjobconfig.json").read_bytes())
    resources = json.loads((tmp_path / "config/resourceconfig.json").read_bytes())
    assert {k: v for k, v in config.items() if k in request} == request
    assert resources == {"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}


def test_outputs_go_up_without_links(tmp_path: Path, client: Any) -> None:
    """As the developer guide warns: a link is not followed."""
    request = processing(f"s3://{BUCKET}/in/")
    one = host(tmp_path)
    lay_out(one, request, client)
    output = tmp_path / "processing/output/y"
    (output / "deep").mkdir()
    (output / "deep/file").write_bytes(b"f")
    (output / "link").symlink_to(output / "deep/file")

    sent = upload_outputs(one, request, client)

    assert sent == [f"s3://{BUCKET}/out/deep/file"]
    body = client.get_object(Bucket=BUCKET, Key="out/deep/file")["Body"].read()
    assert body == b"f"


@pytest.mark.parametrize(
    ("data", "text", "valid"),
    [
        (b"ok", "ok", True),
        (b"x" * 1023 + "\u00e9".encode(), "x" * 1023, True),
        (b"caf\xe9", "caf\ufffd", False),
    ],
)
def test_a_message_is_a_kilobyte_of_utf8(
    tmp_path: Path, data: bytes, text: str, *, valid: bool
) -> None:
    """What is not UTF-8 is told, as it fails the job."""
    (tmp_path / "output").mkdir()
    (tmp_path / "output/message").write_bytes(data)

    assert read_message(host(tmp_path), ok=True) == (text, valid)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("kill:compile", {"kind": "kill", "stage": "compile"}),
        ("stop:a/quantize", {"kind": "stop", "stage": "a/quantize"}),
        ("limit:20", {"kind": "limit", "seconds": 20.0}),
        ("disk-full:2MiB", {"kind": "disk-full", "num_bytes": 2 << 20}),
        ("throttle", {"kind": "throttle"}),
        ("lost-host", {"kind": "lost-host", "seconds": -1.0}),
        ("lost-host:3", {"kind": "lost-host", "seconds": 3.0}),
    ],
)
def test_faults_are_read(text: str, fields: dict[str, object]) -> None:
    fault = parse_fault(text)

    assert {name: getattr(fault, name) for name in fields} == fields


def test_a_stage_is_meant_by_name_or_kind() -> None:
    fault = parse_fault("kill:quantize")

    assert fault.strikes("tiny/quantize")
    assert not fault.strikes("quantize/compile")
    assert parse_fault("kill:a/quantize").strikes("a/quantize")
    assert not parse_fault("kill:a/quantize").strikes("b/quantize")


@pytest.mark.parametrize("text", ["", "kill", "kill:", "limit:x", "throttle:1", "fire"])
def test_other_faults_are_refused(text: str) -> None:
    with pytest.raises(UsageInvalid) as caught:
        parse_fault(text)

    assert caught.value.hints == (f"write {FORMS}",)


def test_a_foreign_server_is_not_throttled(tmp_path: Path) -> None:
    wish = Wish(
        scratch=tmp_path, fault=parse_fault("throttle"), server="http://127.0.0.1:1"
    )

    with pytest.raises(UsageInvalid, match="needs a server of our own"):
        simulate([], Settings(cache_dir=tmp_path), wish)
