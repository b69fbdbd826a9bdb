"""The provenance statement: the specification's form, and nothing of the machine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmi_build.digest import digest_bytes
from lmi_build.package.provenance import provenance_statement, purl
from lmi_build.values.manifest import FileEntry
from packed import sample_facts, sample_params

FILES = [
    FileEntry(path=name, size=1, digest=digest_bytes(name.encode()))
    for name in ("b", "a/c")
]


def _statement(**changes: Any) -> dict[str, Any]:
    data = provenance_statement(sample_params(**changes), FILES, version="0.1.0")
    return dict(json.loads(data))


def test_statement_is_valid_in_toto() -> None:
    """The reference library of the specification accepts it, with its predicate."""
    json_format = pytest.importorskip("google.protobuf.json_format")
    provenance_pb2 = pytest.importorskip(
        "in_toto_attestation.predicates.provenance.v1.provenance_pb2"
    )
    statement_pb2 = pytest.importorskip("in_toto_attestation.v1.statement_pb2")
    statement = pytest.importorskip("in_toto_attestation.v1.statement")
    document = _statement()

    parsed = json_format.ParseDict(document, statement_pb2.Statement())
    statement.Statement.copy_from_pb(parsed).validate()
    predicate = json_format.ParseDict(
        document["predicate"], provenance_pb2.Provenance()
    )
    assert predicate.build_definition.build_type
    assert predicate.run_details.builder.id == "pkg:pypi/lmi-build@0.1.0"
    assert not predicate.run_details.metadata.started_on.seconds


def test_statement_names_every_file_and_source() -> None:
    """Subject: what was made. Dependencies: from what, by which tools."""
    document = _statement()
    build = document["predicate"]["buildDefinition"]
    dependencies = {row["name"]: row for row in build["resolvedDependencies"]}

    assert [row["name"] for row in document["subject"]] == ["a/c", "b"]
    assert dependencies["model/config.json"]["digest"] == {"gitBlob": "a" * 40}
    assert set(dependencies["model/model.safetensors"]["digest"]) == {"sha256"}
    assert dependencies["tool/torch"]["uri"] == "pkg:pypi/torch@2.13.0%2Bcpu"


def test_statement_of_a_hub_model_names_its_commit() -> None:
    """A hub file can be found again by its package URL."""
    facts = sample_facts(kind="hub", source="owner/name", revision="f" * 40)
    build = _statement(facts=facts)["predicate"]["buildDefinition"]

    uris = {row.get("uri") for row in build["resolvedDependencies"]}
    assert f"pkg:huggingface/owner/name@{'f' * 40}" in uris


def test_statement_holds_nothing_of_the_machine() -> None:
    """No folder of the builder's disk reaches the statement."""
    assert "/home/somebody" not in json.dumps(_statement())


def test_purl_normalises_names() -> None:
    """Package URLs of PyPI are lower case with dashes."""
    assert purl("Foo_Bar", "1.0") == "pkg:pypi/foo-bar@1.0"
