"""A shared store on a real S3 server, and hosts that build over it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
import uuid
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3

from faulty_s3 import FaultyS3
from lmi_build.digest import Digest, digest_json
from lmi_build.events import Event, ignore
from lmi_build.execute.executor import execute
from lmi_build.execute.stores import open_store
from lmi_build.plan.saved import plan_to_json
from lmi_build.store.tiered import TieredStore
from lmi_build.values.publish import MIN_PART_BYTES, Transfer
from lmi_build.values.result import Measure
from stage_plans import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lmi_build.store.store import Store
    from lmi_build.values.result import BuildResult
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan

TESTS = Path(__file__).parent
BUCKET = "shared-bucket"
URL = f"s3://{BUCKET}/team/store"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
MEASURE = Measure(seconds=1.0, cpu_seconds=1.0, peak_rss_bytes=1)
QUICK = Transfer(
    part_bytes=MIN_PART_BYTES,
    concurrency=4,
    attempts=3,
    connect_timeout_seconds=2,
    read_timeout_seconds=2,
)


def aws(server: FaultyS3) -> dict[str, str]:
    """The `aws` group of settings that reach the server."""
    return {**KEYS, "AWS_ENDPOINT_URL_S3": server.url, "AWS_REGION": "us-east-1"}


@contextmanager
def bucket_server() -> Iterator[FaultyS3]:
    """A server that holds the bucket."""
    with FaultyS3() as server:
        # moto keeps what it holds beyond the server's end.
        request = urllib.request.Request(f"{server.url}/moto-api/reset", method="POST")  # noqa: S310
        urllib.request.urlopen(request).close()  # noqa: S310
        client(server).create_bucket(Bucket=BUCKET)
        server.forget()
        yield server


def client(server: FaultyS3) -> Any:
    """A plain client, for a look behind the store's back."""
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def names(server: FaultyS3) -> list[str]:
    """The key of every object below the store's prefix."""
    s3 = client(server)
    rows = s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    s3.close()
    return [row["Key"].removeprefix("team/store/") for row in rows]


def objects(server: FaultyS3) -> dict[str, bytes]:
    """Every object below the store's prefix."""
    found = {}
    s3 = client(server)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for row in page.get("Contents", []):
            body = s3.get_object(Bucket=BUCKET, Key=row["Key"])["Body"].read()
            found[row["Key"].removeprefix("team/store/")] = body
    s3.close()
    return found


def host(root: Path, server: FaultyS3, url: str = URL) -> Settings:
    """The settings of one machine that builds over the shared store."""
    return replace(settings(root, aws=aws(server)), store=url)


@contextmanager
def opened(given: Settings) -> Iterator[TieredStore]:
    """The store of a machine."""
    store = open_store(given, transfer=QUICK)
    assert isinstance(store, TieredStore)
    try:
        yield store
    finally:
        store.close()


def commit(store: Store, folder: Path, name: str = "out", data: bytes = b"abc") -> Any:
    """Keep a result of two files under a key made from its name, as a stage does."""
    staged = folder / f"staged-{uuid.uuid4().hex}"
    staged.mkdir(parents=True)
    (staged / "out.bin").write_bytes(data)
    (staged / "note.txt").write_text(name)
    document = key_document(name)
    key = digest_json(document)
    with store.building(key, lambda: None):
        return store.commit(
            key, staged, key_document=document, stage="fetch", measure=MEASURE
        )


def key_document(name: str) -> dict[str, str]:
    """What the key of a result is made from."""
    return {"kind": "fetch", "name": name}


def key_of(name: str = "out") -> Digest:
    """The key of a result."""
    return digest_json(key_document(name))


def build(
    item: Plan, given: Settings, emit: Callable[[Event], None] = ignore
) -> BuildResult:
    """Build a plan on one machine."""
    with opened(given) as store:
        return execute(item, store=store, settings=given, emit=emit)


def start(
    folder: Path, server: FaultyS3, name: str, plan: Plan, lease_seconds: float = 3.0
) -> subprocess.Popen[str]:
    """A host at work."""
    request = folder / f"{name}.json"
    document = {
        "server": server.url,
        "root": str(folder / name),
        "host": name,
        "plan": plan_to_json(plan),
        "lease_seconds": lease_seconds,
    }
    request.write_text(json.dumps(document))
    return subprocess.Popen(
        [sys.executable, str(TESTS / "shared_host.py"), str(request)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(TESTS), "PATH": "/usr/bin:/bin"},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """Its exit status and what it said."""
    out, _ = process.communicate(timeout=120)
    return process.returncode, [json.loads(line) for line in out.splitlines()]
