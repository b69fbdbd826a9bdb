"""
Names at a destination, and the two small documents that hold them together.

```
<to>/<name>/<64 hex of the manifest's digest>/   immutable version prefix
    model/...                                    data, in any order
    verify.json                                  files beside the manifest
    manifest.json                                last; its presence is the commit
<to>/<name>/latest.json                          {"manifest": .., "prefix": ..}
```
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from lmi_build.digest import Digest, canonical_json, digest_bytes
from lmi_build.errors import PublishFailed, VerifyFailed
from lmi_build.values.manifest import (
    MANIFEST_NAME,
    RECORD_NAMES,
    read_entries,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.manifest import FileEntry

LATEST = "latest.json"

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


def version_prefix(name: str, manifest_digest: str) -> str:
    """
    The key prefix of a version, with its trailing slash.

    Raises:
        ValueError: The name is not a plain word or the digest is not one.
    """
    hexadecimal = manifest_digest.removeprefix("sha256:")
    if not _HEX.match(hexadecimal):
        raise ValueError(f"not a SHA-256 digest: {manifest_digest!r}")
    if not _NAME.match(name) or name.startswith("."):
        raise ValueError(f"not an artifact name: {name!r}")
    return f"{name}/{hexadecimal}/"


def is_version(segment: str) -> bool:
    """Whether a path segment is the hexadecimal digest of a manifest."""
    return _HEX.match(segment) is not None


def parse_files(manifest: bytes, *, where: str) -> tuple[FileEntry, ...]:
    """
    Read the file table of a manifest, trusting nothing.

    Args:
        manifest: Bytes of `manifest.json`.
        where: Its place, for the message.

    Raises:
        VerifyFailed: `publish.manifest-invalid`: no JSON, no table, a path that would
            leave the artifact, a path listed twice.
    """
    try:
        return read_entries(json.loads(manifest)["files"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerifyFailed(
            f"{where} is not a manifest: {error}",
            code="publish.manifest-invalid",
            hints=("build the artifact again",),
        ) from error


def latest_document(manifest_digest: Digest) -> bytes:
    """The bytes of `latest.json` that point at a version."""
    return canonical_json(
        {
            "manifest": manifest_digest,
            "prefix": manifest_digest.removeprefix("sha256:") + "/",
        }
    )


def parse_latest(data: bytes, *, where: str) -> Digest:
    """
    The digest of the manifest that `latest.json` points at.

    Raises:
        VerifyFailed: `publish.latest-invalid`.
    """
    try:
        digest = json.loads(data)["manifest"]
        kind, _, hexadecimal = digest.partition(":")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerifyFailed(
            f"{where} is not a pointer to a version: {error!r}",
            code="publish.latest-invalid",
            hints=("delete it and publish again, or name the version prefix",),
        ) from error
    if kind != "sha256" or not is_version(hexadecimal):
        raise VerifyFailed(
            f"{where} points at `{digest}`, which is not a version",
            code="publish.latest-invalid",
            hints=("delete it and publish again, or name the version prefix",),
        )
    return Digest(digest)


def read_tree(tree: Path, manifest_digest: Digest) -> tuple[bytes, list[FileEntry]]:
    """
    Check that a local tree is exactly what its manifest lists, without hashing it.

    Returns:
        The manifest's bytes and its entries; content is hashed later, on the way up.

    Raises:
        PublishFailed: `publish.tree-differs`: another manifest, a missing file, one
            of another length, or one that is not listed.
    """
    manifest = (tree / MANIFEST_NAME).read_bytes()
    found = digest_bytes(manifest)
    if found != manifest_digest:
        raise _differs(
            f"{tree / MANIFEST_NAME} is {found}, asked for {manifest_digest}"
        )
    entries = parse_files(manifest, where=str(tree / MANIFEST_NAME))
    local = {
        path.relative_to(tree).as_posix(): path.stat().st_size
        for path in tree.rglob("*")
        if path.is_file()
    }
    for entry in entries:
        num_bytes = local.pop(entry.path, None)
        if num_bytes is None:
            raise _differs(f"{tree / entry.path} is missing")
        if num_bytes != entry.size:
            raise _differs(
                f"{tree / entry.path} has {num_bytes} bytes, "
                f"its manifest says {entry.size}"
            )
    foreign = sorted(set(local) - RECORD_NAMES - {MANIFEST_NAME})
    if foreign:
        raise _differs(f"{tree / foreign[0]} is not listed in {MANIFEST_NAME}")
    return manifest, list(entries)


def _differs(message: str) -> PublishFailed:
    return PublishFailed(
        message,
        code="publish.tree-differs",
        hints=("run `lmi-build cache verify`, then build again",),
    )
