"""A record: what one key's work made, in a form that proves itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest, digest_json, digest_tree
from lmi_build.values.manifest import unsafe_path_reason
from lmi_build.values.result import Entry, Measure, StageResult

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD_SCHEMA = 1


def hex_of(digest: str) -> str:
    """The bare hexadecimal digits of a digest or key."""
    return digest.removeprefix("sha256:")


def record_fault(key: str, document: object) -> str | None:
    """
    What is wrong with a record, or None.

    A record proves itself: its key is the digest of its key document, its digest
    that of its entries.
    """
    if not isinstance(document, dict) or document.get("schema") != RECORD_SCHEMA:
        return "it is not a record of this version"
    try:
        entries = [(str(p), Digest(d), int(s)) for p, d, s in document["entries"]]
        if digest_tree(entries) != document["digest"]:
            return "its files do not make its digest"
        if document["key"] != key or digest_json(document["key_document"]) != key:
            return "its key document does not make its key"
        Measure(**document["measure"])
    except (KeyError, TypeError, ValueError) as error:
        return f"it lacks a part ({type(error).__name__}: {error})"
    return None


def parse_record(key: str, data: bytes) -> tuple[dict[str, Any] | None, str]:
    """
    Read a record that came from somewhere else, whose names are trusted less.

    Returns:
        The record and an empty text, or None and what is wrong with it.
    """
    try:
        document = json.loads(data)
    except ValueError:
        return None, "it is not JSON"
    fault = record_fault(key, document)
    if fault is not None:
        return None, fault
    for path, _, _ in document["entries"]:
        reason = unsafe_path_reason(path)
        if reason is not None:
            return None, f"it names a file {path!r}: {reason}"
    return document, ""


def result_of(document: Mapping[str, Any]) -> StageResult:
    """The result that a record without a fault tells of."""
    return StageResult(
        key=Digest(document["key"]),
        digest=Digest(document["digest"]),
        entries=tuple(
            Entry(path=path, digest=Digest(digest), size=size)
            for path, digest, size in document["entries"]
        ),
        measure=Measure(**document["measure"]),
    )
