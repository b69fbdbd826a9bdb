"""
The folders of one host before its container starts, and after it ended.

Inputs come from S3 as SageMaker brings them, its configuration files are written, and
what lies in the outputs at the end goes to S3: regular files, links are not followed.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lmi_build.errors import RemoteFailed
from lmi_build.sagemaker.places import MESSAGE_BYTES, Places
from lmi_build.values.job import PROCESSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

ML = "/opt/ml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """
    One host of a simulated job.

    Args:
        name: `algo-1` and so on.
        hosts: All of them.
        root: What stands for `/opt/ml`.
        kind: `processing` or `training`.
    """

    name: str
    hosts: tuple[str, ...]
    root: Path
    kind: str

    def path(self, text: str) -> Path:
        """The place of a path that the request names."""
        return self.root / text.removeprefix(ML).lstrip("/")

    @property
    def places(self) -> Places:
        """Its folders."""
        return Places(kind=self.kind, root=self.root)


def lay_out(host: Host, request: Mapping[str, Any], client: Any) -> None:
    """
    Make everything that a container finds.

    Args:
        host: Whose folders.
        request: Body of CreateProcessingJob or CreateTrainingJob.
        client: Of S3.

    Raises:
        RemoteFailed: `job.no-input`: a channel's place in S3 holds nothing.
    """
    (host.root / "output").mkdir(parents=True, exist_ok=True)
    for source, folder in _channels(host, request):
        folder.mkdir(parents=True, exist_ok=True)
        _download(host, source, folder, client)
    for output in _outputs(request):
        host.path(output["LocalPath"]).mkdir(parents=True, exist_ok=True)
    for name, document in _config(host, request).items():
        path = host.places.config / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document), encoding="utf-8")


def _channels(
    host: Host, request: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], Path]]:
    if host.kind == PROCESSING:
        for row in request.get("ProcessingInputs", ()):
            yield row["S3Input"], host.path(row["S3Input"]["LocalPath"])
    else:
        for row in request.get("InputDataConfig", ()):
            source = row["DataSource"]["S3DataSource"]
            yield source, host.places.channel(row["ChannelName"])


def _outputs(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = request.get("ProcessingOutputConfig", {}).get("Outputs", ())
    return [row["S3Output"] for row in rows]


def _config(host: Host, request: Mapping[str, Any]) -> dict[str, Any]:
    """SageMaker's own files."""
    resources = {"current_host": host.name, "hosts": list(host.hosts)}
    if host.kind == PROCESSING:
        arn = f"arn:aws:sagemaker:local:000000000000:processing-job/{_name(request)}"
        config = {"ProcessingJobArn": arn, **request}
        return {"processingjobconfig.json": config, "resourceconfig.json": resources}
    channels = {
        row["ChannelName"]: {
            "TrainingInputMode": "File",
            "S3DistributionType": row["DataSource"]["S3DataSource"].get(
                "S3DataDistributionType", "FullyReplicated"
            ),
            "RecordWrapperType": "None",
        }
        for row in request.get("InputDataConfig", ())
    }
    return {
        "resourceconfig.json": {**resources, "network_interface_name": "lo"},
        "hyperparameters.json": dict(request.get("HyperParameters", {})),
        "inputdataconfig.json": channels,
    }


def _name(request: Mapping[str, Any]) -> str:
    return str(request.get("ProcessingJobName") or request.get("TrainingJobName"))


def _download(host: Host, source: Mapping[str, Any], folder: Path, client: Any) -> None:
    """Copy a channel's objects; a manifest lists them, a prefix holds them."""
    bucket, key = split_uri(source["S3Uri"])
    if source["S3DataType"] == "ManifestFile":
        body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        first, *names = json.loads(body)
        bucket, base = split_uri(first["prefix"])
        found = [base + name for name in names]
    else:
        # A prefix is a prefix of keys, not a folder; names below its last slash count.
        base = key[: key.rfind("/") + 1]
        found = list(_keys(client, bucket, key))
        if not found:
            raise RemoteFailed(
                f"nothing lies at {source['S3Uri']}, a channel of the job",
                code="job.no-input",
                hints=("submit the job again: it uploads what is missing",),
            )
    if source.get("S3DataDistributionType") == "ShardedByS3Key":
        found = found[host.hosts.index(host.name) :: len(host.hosts)]
    for item in found:
        target = folder / item.removeprefix(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, item, str(target))


def _keys(client: Any, bucket: str, prefix: str) -> Iterator[str]:
    for page in client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix
    ):
        for row in page.get("Contents", ()):
            if not row["Key"].endswith("/"):
                yield row["Key"]


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an S3 address."""
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def read_message(host: Host, *, ok: bool) -> tuple[str, bool]:
    """
    What SageMaker makes of the message file.

    Returns:
        Its first kilobyte, and whether it is UTF-8; one that is not fails the job.
    """
    path = host.places.message(ok=ok)
    if path is None or not path.is_file():
        return "", True
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data[:MESSAGE_BYTES].decode("utf-8", "replace"), False
    return data[:MESSAGE_BYTES].decode("utf-8", "ignore"), True


def upload_outputs(host: Host, request: Mapping[str, Any], client: Any) -> list[str]:
    """
    Copy what a container left in its outputs.

    Returns:
        The addresses of the objects.
    """
    if host.kind == PROCESSING:
        return [
            uri
            for output in _outputs(request)
            for uri in _upload(host.path(output["LocalPath"]), output["S3Uri"], client)
        ]
    config = request["OutputDataConfig"]
    base = f"{config['S3OutputPath'].rstrip('/')}/{_name(request)}/output"
    if config.get("CompressionType") == "NONE":
        return [
            *_upload(host.root / "model", f"{base}/model", client),
            *_upload(host.root / "output" / "data", f"{base}/data", client),
        ]
    return [
        *_upload_packed(host.root / "model", f"{base}/model.tar.gz", client),
        *_upload_packed(host.root / "output" / "data", f"{base}/output.tar.gz", client),
    ]


def _upload(folder: Path, uri: str, client: Any) -> Iterator[str]:
    bucket, prefix = split_uri(uri)
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.is_symlink() or not path.is_file():
            continue
        key = f"{prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}"
        client.upload_file(str(path), bucket, key)
        yield f"s3://{bucket}/{key}"


def _upload_packed(folder: Path, uri: str, client: Any) -> Iterator[str]:
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    archive = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, arcname=".")
    bucket, key = split_uri(uri)
    client.upload_file(str(archive), bucket, key)
    archive.unlink()
    yield uri


def remove_tree(root: Path) -> None:
    """Delete a host's folders, read-only blobs included."""
    shutil.rmtree(root, ignore_errors=True)
