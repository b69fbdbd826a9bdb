"""Where an artifact goes or comes from, from the text a user wrote."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.errors import UsageInvalid
from lmi_build.publishers.folder import FolderPlace
from lmi_build.publishers.laws import publish_version
from lmi_build.values.publish import PublishReceipt, Transfer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.digest import Digest
    from lmi_build.events import Emit
    from lmi_build.remote.place import Place
    from lmi_build.values.recipe import PublishSpec
    from lmi_build.values.settings import Settings

# AWS, "General purpose bucket naming rules".
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def publish(
    tree: Path,
    *,
    manifest_digest: Digest,
    name: str,
    destination: PublishSpec,
    settings: Settings,
    extra: Mapping[str, Path],
    emit: Emit,
    transfer: Transfer | None = None,
) -> PublishReceipt:
    """
    Publish a packed artifact; run again after any fault, it goes on where it was.

    Args:
        tree: The packed artifact, with `manifest.json` at its root.
        manifest_digest: SHA-256 of that manifest.
        name: The artifact's name.
        destination: Where to, and how it is stored there.
        settings: Credentials.
        extra: File name to file, for what stands beside the manifest.
        emit: Watcher; gets `StageProgress` in bytes.
        transfer: Parts, parallelism, patience.

    Raises:
        PublishFailed: The tree or the destination is not what it should be.
        RemoteFailed: The destination refused or vanished.
        UsageInvalid: `publish.bad-destination`.
    """
    with open_place(
        destination.to, destination, settings, transfer or Transfer()
    ) as place:
        return publish_version(
            place,
            tree,
            manifest_digest=manifest_digest,
            name=name,
            extra=extra,
            emit=emit,
        )


@contextmanager
def open_place(
    uri: str, access: PublishSpec, settings: Settings, transfer: Transfer
) -> Iterator[Place]:
    """
    A place for a URI, closed at the end.

    Raises:
        UsageInvalid: `publish.bad-destination`.
    """
    place = make_place(uri, access, settings, transfer)
    try:
        yield place
    finally:
        place.close()


def make_place(
    uri: str, access: PublishSpec, settings: Settings, transfer: Transfer
) -> Place:
    """The place for a URI: S3 when it says so, else a folder."""
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return FolderPlace(Path(uri).expanduser())
    if scheme.group(1) != "s3":
        raise _bad(uri, f"`{scheme.group(1)}` is not a kind of destination")
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not _BUCKET.match(bucket):
        raise _bad(uri, f"`{bucket}` is not a bucket name")
    segments = prefix.rstrip("/").split("/")
    if prefix.strip("/") and any(s in {"", ".", ".."} for s in segments):
        raise _bad(uri, "its prefix has an empty or dotted segment")
    from lmi_build.remote.s3_place import S3Place

    return S3Place(
        bucket,
        f"{prefix.strip('/')}/" if prefix.strip("/") else "",
        access=access,
        settings=settings,
        transfer=transfer,
    )


def _bad(uri: str, why: str) -> UsageInvalid:
    return UsageInvalid(
        f"cannot use `{uri}`: {why}",
        code="publish.bad-destination",
        hints=("write s3://my-bucket/some/prefix, or the path of a folder",),
    )
