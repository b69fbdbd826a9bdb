"""Packed artifacts and destinations for the tests of publishing."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest, digest_bytes
from lmi_build.events import Event, ignore
from lmi_build.publishers.destination import publish
from lmi_build.values.publish import MIN_PART_BYTES, PublishReceipt, Transfer
from lmi_build.values.recipe import PublishSpec
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from faulty_s3 import FaultyS3

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
# Faults must not cost a test its speed; parts as small as S3 allows.
QUICK = Transfer(
    part_bytes=MIN_PART_BYTES,
    concurrency=4,
    attempts=3,
    connect_timeout_seconds=1,
    read_timeout_seconds=2,
)
LARGE = "model/weights.bin"


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A packed artifact on disk."""

    tree: Path
    digest: Digest
    manifest: bytes
    files: Mapping[str, bytes]

    @property
    def num_bytes(self) -> int:
        """Bytes of data files."""
        return sum(len(data) for data in self.files.values())

    @property
    def hexadecimal(self) -> str:
        """The version prefix's last segment."""
        return self.digest.removeprefix("sha256:")


def pack(folder: Path, *, seed: int = 0, large_bytes: int = 0) -> Packed:
    """A small artifact; `large_bytes` over 5 MiB makes a file that goes in parts."""
    draw = random.Random(seed)  # noqa: S311 -- content, not a secret
    files = {
        "serving.properties": b"engine=Python\n",
        "model/empty": b"",
        "model/odd name+&%.txt": b"odd",
        LARGE: draw.randbytes(large_bytes or 70_000),
    }
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    rows = [
        {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in sorted(files.items())
    ]
    manifest = json.dumps({"files": rows, "seed": seed}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    return Packed(
        tree=folder, digest=digest_bytes(manifest), manifest=manifest, files=files
    )


def settings_with_keys(cache_dir: Path) -> Settings:
    """Settings that hold credentials no server checks."""
    return Settings(cache_dir=cache_dir, secrets={"aws": KEYS})


def s3_client(server: FaultyS3) -> Any:
    """A plain client, to look behind our own."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A place to publish to, with a way to look and meddle behind our back."""

    spec: PublishSpec
    settings: Settings
    put: Callable[[str, bytes], None]
    remove: Callable[[str], None]
    stored: Callable[[], set[str]]

    def publish(self, packed: Packed, **more: Any) -> PublishReceipt:
        """Publish as `nm`."""
        arguments: dict[str, Any] = {
            "manifest_digest": packed.digest,
            "name": "nm",
            "destination": self.spec,
            "settings": self.settings,
            "extra": {},
            "emit": ignore,
            "transfer": QUICK,
        }
        return publish(packed.tree, **{**arguments, **more})


class Recorder:
    """An `Emit` that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def codes(self) -> list[str]:
        """Codes of the notes."""
        return [getattr(e, "code", "") for e in self.events if hasattr(e, "code")]


def s3_destination(
    server: FaultyS3, bucket: str, cache_dir: Path, **spec: Any
) -> Destination:
    """A fresh bucket."""
    client = s3_client(server)
    client.create_bucket(Bucket=bucket)
    base = "some/prefix/"

    def stored() -> set[str]:
        rows = client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {row["Key"].removeprefix(base) for row in rows}

    return Destination(
        spec=PublishSpec(
            to=f"s3://{bucket}/some/prefix", endpoint_url=server.url, **spec
        ),
        settings=settings_with_keys(cache_dir),
        put=lambda key, data: client.put_object(
            Bucket=bucket, Key=base + key, Body=data
        ),
        remove=lambda key: client.delete_object(Bucket=bucket, Key=base + key),
        stored=stored,
    )


def folder_destination(root: Path, cache_dir: Path) -> Destination:
    """A fresh folder."""

    def put(key: str, data: bytes) -> None:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)

    def stored() -> set[str]:
        return {
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.is_file() and not path.name.endswith(".lock")
        }

    return Destination(
        spec=PublishSpec(to=str(root)),
        settings=settings_with_keys(cache_dir),
        put=put,
        remove=lambda key: (root / key).unlink(),
        stored=stored,
    )
