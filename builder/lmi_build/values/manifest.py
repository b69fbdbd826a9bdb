"""
The manifest: what an artifact is, file by file, in bytes that name it.

The bytes are a function of the content alone. No time, host, user or path of the
machine that built it stands here, so the same build gives the same identity
anywhere; the identity is the SHA-256 of these bytes.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest, canonical_json, digest_bytes
from lmi_build.errors import VerifyFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.digest import JSONValue

MANIFEST_SCHEMA = "lmi-build/manifest/v1"
MANIFEST_NAME = "manifest.json"
ARCHIVE_NAME = "model.tar.gz"
# The only files that may stand beside a manifest without being listed in it. They
# are records about the artifact that no server loads, so a foreign file cannot hide.
RECORD_NAMES = frozenset({"verify.json", "build.json"})

# Controls, formats such as right-to-left marks, halves of a pair, line separators.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_KINDS: Mapping[str, type] = {
    "name": str,
    "layout": str,
    "format": str,
    "files": list,
}
_REBUILD = "rebuild the artifact, or fetch it again from where it was published"


def unsafe_path_reason(path: str) -> str | None:
    """
    Why a relative path must not be followed, or None when it may.

    A manifest comes from a bucket; a path in it must stay inside the artifact on
    every system that may unpack it.
    """
    if not path:
        return "it is empty"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "it is absolute"
    if "\\" in path:
        return "it has a backslash"
    if any(unicodedata.category(char) in _UNSEEN for char in path):
        return "it has a character that does not show"
    if any(part in {"", ".", ".."} for part in path.split("/")):
        return "it has an empty, `.` or `..` part"
    return None


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class FileEntry:
    """
    One file of the artifact.

    Args:
        path: Relative to the artifact, with forward slashes.
        size: Bytes.
        digest: `sha256:` and 64 hexadecimal digits.
    """

    path: str
    size: int
    digest: Digest

    def __post_init__(self) -> None:
        reason = unsafe_path_reason(self.path)
        if reason is not None:
            raise ValueError(f"file path {self.path!r} is refused: {reason}")
        if self.size < 0:
            raise ValueError(f"{self.path}: a size of {self.size} bytes is refused")
        if not _DIGEST.match(self.digest):
            raise ValueError(f"{self.path}: {self.digest!r} is not a SHA-256 digest")

    @property
    def sha256(self) -> str:
        """The digest's 64 hexadecimal digits, as manifests and S3 metadata have it."""
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """
    Everything an artifact says about itself.

    Args:
        name: The recipe's name.
        layout: How the files lie, such as `djl-lmi`.
        format: `prefix` or `tar.gz`.
        recipe: `digest` and `document`, the resolved recipe without `publish`.
        model: Source, revision, sizes, and the digest of every source file.
        plan: Stage kind to key.
        bounds: What one request and one batch may ask for.
        scheme: The numbers on disk.
        ledger: Digest and row count of the tensor ledger, totals and worst layers of
            `layers.json`; None when nothing was quantized.
        tools: Stage kind to distribution to version.
        compatibility: What the serving machine must be and have.
        serving: Handler, engine folder and `serving.properties` entries.
        deploy: Settings of the container; they stand here because DJL Serving takes
            its environment from the container and not from the model folder.
        files: Every file but the manifest itself, sorted by path.
    """

    name: str
    layout: str
    format: str
    recipe: Mapping[str, JSONValue]
    model: Mapping[str, JSONValue]
    plan: Mapping[str, JSONValue]
    bounds: Mapping[str, JSONValue]
    scheme: Mapping[str, JSONValue]
    ledger: Mapping[str, JSONValue] | None
    tools: Mapping[str, JSONValue]
    compatibility: Mapping[str, JSONValue]
    serving: Mapping[str, JSONValue]
    deploy: Mapping[str, JSONValue]
    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        _check_paths([entry.path for entry in self.files])

    @property
    def digest(self) -> Digest:
        """The artifact's identity."""
        return digest_bytes(self.to_bytes())

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, without the manifest."""
        return sum(entry.size for entry in self.files)

    def to_bytes(self) -> bytes:
        """Write it: sorted keys, two spaces, UTF-8, one newline at the end."""
        document: dict[str, JSONValue] = {
            field.name: getattr(self, field.name) for field in fields(self)
        }
        document["schema"] = MANIFEST_SCHEMA
        document["files"] = [
            {
                "path": entry.path,
                "size": entry.size,
                "sha256": entry.sha256,
            }
            for entry in self.files
        ]
        # The canonical writer refuses what JSON cannot say; only then is it indented.
        plain = json.loads(canonical_json(document))
        text = json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=False)
        return (text + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """
        Read one strictly: an unknown schema, field or unsafe path is refused.

        Raises:
            VerifyFailed: `verify.manifest-unreadable`, `verify.manifest-schema` or
                `verify.manifest-invalid`.
        """
        document = _read_object(data)
        schema = document.pop("schema", None)
        if schema != MANIFEST_SCHEMA:
            raise VerifyFailed(
                f"manifest schema is {schema!r}, this version reads"
                f" {MANIFEST_SCHEMA!r}",
                code="verify.manifest-schema",
                hints=("use the lmi-build version that made the artifact",),
            )
        try:
            return cls(**_checked_fields(document))
        except ValueError as error:
            raise VerifyFailed(
                f"{MANIFEST_NAME} is not valid: {error}",
                code="verify.manifest-invalid",
                hints=(_REBUILD,),
            ) from error


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise VerifyFailed(
            f"{MANIFEST_NAME} ({len(data)} bytes) is not JSON: {error}",
            code="verify.manifest-unreadable",
            hints=(_REBUILD,),
        ) from error
    if not isinstance(document, dict):
        raise VerifyFailed(
            f"{MANIFEST_NAME} holds a {type(document).__name__}, not an object",
            code="verify.manifest-unreadable",
            hints=(_REBUILD,),
        )
    return document


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} stands twice in one object")
        found[name] = value
    return found


def _checked_fields(document: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(Manifest)]
    if missing := sorted(set(names) - set(document)):
        raise ValueError(f"`{missing[0]}` is missing")
    if unknown := sorted(set(document) - set(names)):
        raise ValueError(f"`{unknown[0]}` is not a field of {MANIFEST_SCHEMA}")
    for name in names:
        value = document[name]
        optional = name == "ledger" and value is None
        if not optional and not isinstance(value, _KINDS.get(name, dict)):
            raise ValueError(f"`{name}` is a {type(value).__name__}")
    return {**document, "files": read_entries(document["files"])}


def read_entries(rows: object) -> tuple[FileEntry, ...]:
    """
    The table of files of a manifest, trusting nothing.

    Args:
        rows: The value of `files` as JSON gave it.

    Raises:
        ValueError: A row is no file entry, or the paths do not make one tree.
    """
    if not isinstance(rows, list):
        raise ValueError(f"`files` is a {type(rows).__name__}")  # noqa: TRY004 - data
    entries = tuple(_entry(row, index) for index, row in enumerate(rows))
    _check_paths([entry.path for entry in entries])
    return entries


def _check_paths(paths: Sequence[str]) -> None:
    if list(paths) != sorted(paths):
        raise ValueError("`files` must be sorted by path")
    if len(set(paths)) != len(paths):
        double = next(a for a, b in itertools.pairwise(paths) if a == b)
        raise ValueError(f"`files` names {double!r} twice")
    known = set(paths)
    for path in paths:
        parents = {str(parent) for parent in PurePosixPath(path).parents}
        if nested := sorted(parents & known):
            raise ValueError(f"{nested[0]!r} is both a file and a folder")
    if MANIFEST_NAME in known:
        raise ValueError(f"`files` must not name {MANIFEST_NAME} itself")


def _entry(row: object, index: int) -> FileEntry:
    if not isinstance(row, dict) or set(row) != {"path", "size", "sha256"}:
        raise ValueError(f"`files[{index}]` must have exactly path, size and sha256")
    path, size, sha = row["path"], row["size"], row["sha256"]
    whole = isinstance(size, int) and not isinstance(size, bool)
    if not isinstance(path, str) or not isinstance(sha, str) or not whole:
        raise ValueError(f"`files[{index}]` has a value of the wrong type")
    return FileEntry(path=path, size=size, digest=Digest(f"sha256:{sha}"))
