"""
The provenance statement: what an artifact was made from, by which tools.

Source: in-toto Attestation Framework, Statement v1; SLSA 1.0 provenance predicate.
It is unsigned. It holds no time and no place, so that it can be a file of the
artifact without giving the same build two identities.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from lmi_build.digest import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.digest import JSONValue
    from lmi_build.values.manifest import FileEntry

PROVENANCE_NAME = "provenance.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:lmi-build:build:v1"

# DigestSet names of the specification; a hub tells a git blob id of small files.
_DIGEST_NAMES = {"sha256": "sha256", "git-sha1": "gitBlob"}


def provenance_statement(
    head: Mapping[str, JSONValue], files: Sequence[FileEntry], *, version: str
) -> bytes:
    """
    Write the statement about `files`.

    Args:
        head: The package parameters (`stage.package_params`).
        files: The subject: every file but this one and the manifest.
        version: Of lmi-build.
    """
    model = cast("Mapping[str, JSONValue]", head["model"])
    recipe = cast("Mapping[str, JSONValue]", head["recipe"])
    statement: dict[str, JSONValue] = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {
                "name": entry.path,
                "digest": {"sha256": entry.digest.removeprefix("sha256:")},
            }
            for entry in sorted(files)
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "name": head["name"],
                    "recipe": {"digest": _digest_set(str(recipe["digest"]))},
                    "source": model["source"],
                    "revision": model["revision"],
                },
                "internalParameters": {"plan": head["plan"]},
                "resolvedDependencies": [
                    *_model_dependencies(model),
                    *_tool_dependencies(head["tools"]),
                ],
            },
            "runDetails": {"builder": {"id": purl("lmi-build", version)}},
        },
    }
    plain = json.loads(canonical_json(statement))
    return (json.dumps(plain, sort_keys=True, indent=2) + "\n").encode()


def purl(distribution: str, version: str) -> str:
    """The package URL of a Python distribution (purl specification, type `pypi`)."""
    name = distribution.lower().replace("_", "-")
    return f"pkg:pypi/{quote(name, safe='')}@{quote(version, safe='')}"


def _digest_set(digest: str) -> dict[str, JSONValue]:
    algorithm, _, value = digest.partition(":")
    return {_DIGEST_NAMES.get(algorithm, algorithm): value}


def _model_dependencies(model: Mapping[str, JSONValue]) -> list[JSONValue]:
    rows: list[JSONValue] = []
    for fact in cast("Sequence[Mapping[str, JSONValue]]", model["files"]):
        row: dict[str, JSONValue] = {
            "name": f"model/{fact['path']}",
            "digest": _digest_set(str(fact["digest"])),
        }
        if model["kind"] == "hub":
            source = quote(str(model["source"]), safe="/")
            revision = quote(str(model["revision"]), safe="")
            row["uri"] = f"pkg:huggingface/{source}@{revision}"
        rows.append(row)
    return rows


def _tool_dependencies(tools: JSONValue) -> list[JSONValue]:
    by_kind = cast("Mapping[str, Mapping[str, str]]", tools)
    found = {
        (name, version)
        for versions in by_kind.values()
        for name, version in versions.items()
    }
    return [
        {"name": f"tool/{name}", "uri": purl(name, version)}
        for name, version in sorted(found)
    ]
