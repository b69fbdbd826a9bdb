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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest, canonical_json, digest_bytes
from lmi_build.errors import PublishFailed, VerifyFailed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MANIFEST = "manifest.json"
LATEST = "latest.json"
# The only files that may stand beside a manifest without being listed in it. They
# are records about the artifact that no server loads, so a foreign file cannot hide.
BESIDE = frozenset({"verify.json", "build.json"})

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """
    One row of a manifest.

    Args:
        path: Relative POSIX path.
        num_bytes: Length.
        sha256: 64 hexadecimal digits, without a prefix.
    """

    path: str
    num_bytes: int
    sha256: str


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
        document: Any = json.loads(manifest)
        rows = document["files"]
        entries = tuple(_parse_row(row) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise VerifyFailed(
            f"{where} is not a manifest: {error}",
            code="publish.manifest-invalid",
            hints=("build the artifact again",),
        ) from error
    paths = [entry.path for entry in entries]
    twice = {path for path in paths if paths.count(path) > 1}
    if twice:
        raise VerifyFailed(
            f"{where} lists `{min(twice)}` twice",
            code="publish.manifest-invalid",
            hints=("build the artifact again",),
        )
    return entries


def _parse_row(row: Mapping[str, Any]) -> FileEntry:
    path, num_bytes, sha256 = row["path"], row["size"], row["sha256"]
    if not isinstance(path, str) or not is_safe_path(path) or path == MANIFEST:
        raise ValueError(f"`{path}` is not a path inside an artifact")
    if not isinstance(num_bytes, int) or isinstance(num_bytes, bool) or num_bytes < 0:
        raise ValueError(f"`{path}` has the size {num_bytes!r}")
    if not isinstance(sha256, str) or not _HEX.match(sha256):
        raise ValueError(f"`{path}` has the digest {sha256!r}")
    return FileEntry(path=path, num_bytes=num_bytes, sha256=sha256)


def is_safe_path(path: str) -> bool:
    """Whether a path is relative, plain POSIX, and stays where it is put."""
    segments = path.split("/")
    plain = all(segment not in {"", ".", ".."} for segment in segments)
    return plain and "\\" not in path and path.isprintable()


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
    manifest = (tree / MANIFEST).read_bytes()
    found = digest_bytes(manifest)
    if found != manifest_digest:
        raise _differs(f"{tree / MANIFEST} is {found}, asked for {manifest_digest}")
    entries = parse_files(manifest, where=str(tree / MANIFEST))
    local = {
        path.relative_to(tree).as_posix(): path.stat().st_size
        for path in tree.rglob("*")
        if path.is_file()
    }
    for entry in entries:
        num_bytes = local.pop(entry.path, None)
        if num_bytes is None:
            raise _differs(f"{tree / entry.path} is missing")
        if num_bytes != entry.num_bytes:
            raise _differs(
                f"{tree / entry.path} has {num_bytes} bytes, "
                f"its manifest says {entry.num_bytes}"
            )
    foreign = sorted(set(local) - BESIDE - {MANIFEST})
    if foreign:
        raise _differs(f"{tree / foreign[0]} is not listed in {MANIFEST}")
    return manifest, list(entries)


def _differs(message: str) -> PublishFailed:
    return PublishFailed(
        message,
        code="publish.tree-differs",
        hints=("run `lmi-build cache verify`, then build again",),
    )
