"""The manifest: strict reading, stable bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmi_build.digest import Digest, digest_bytes
from lmi_build.errors import VerifyFailed
from lmi_build.package.worker import make_manifest
from lmi_build.values.manifest import FileEntry, Manifest, unsafe_path_reason
from packed import bounds_document, entry, sample_facts, sample_params, sample_recipe


def _manifest(**changes: Any) -> Manifest:
    files = [FileEntry(path="a/b", size=1, digest=digest_bytes(b"x"))]
    return make_manifest({**sample_params(), **changes}, files, ledger=None)


def _document(manifest: Manifest) -> dict[str, Any]:
    return dict(json.loads(manifest.to_bytes()))


def _read(document: dict[str, Any]) -> Manifest:
    return Manifest.from_bytes(json.dumps(document).encode())


def test_manifest_round_trip() -> None:
    """Reading what was written and writing it again gives the same bytes."""
    manifest = _manifest()
    again = Manifest.from_bytes(manifest.to_bytes())

    assert again.to_bytes() == manifest.to_bytes()
    assert again.digest == manifest.digest


def test_manifest_does_not_depend_on_order() -> None:
    """Equal content gives equal bytes, however mappings were filled."""
    document = bounds_document()
    backwards = dict(reversed(document.items()))

    assert _manifest(bounds=document).digest == _manifest(bounds=backwards).digest


def test_manifest_holds_nothing_of_the_machine() -> None:
    """Folders of the builder's disk, publishing and times stay out."""
    text = _manifest().to_bytes().decode()

    assert "/home/somebody" not in text
    assert "/data/team" not in text
    assert "s3://bucket" not in text
    assert "chat.jsonl" in text


def test_publishing_elsewhere_is_the_same_artifact() -> None:
    """The `publish` section does not reach the identity; the bounds do."""
    recipe = sample_recipe()
    moved = {**recipe.document, "publish": {"to": "s3://other/place"}}
    bound = {**recipe.document, "bounds": {"max_input_len": 65}}
    digests = [
        _manifest(**sample_params(recipe=sample_recipe(document=document))).digest
        for document in (recipe.document, moved, bound)
    ]

    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_same_model_elsewhere_is_the_same_artifact() -> None:
    """A model folder may lie anywhere."""
    here, there = "/home/somebody/models/tiny", "/mnt/other/tiny"
    facts = [sample_facts(source=s, location=s) for s in (here, there)]
    digests = {_manifest(**sample_params(facts=fact)).digest for fact in facts}

    assert len(digests) == 1


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "a/",
        "gpj.\u202ea",
        "a\u2028",
        "../up",
        "a/../../up",
        "a//b",
        "./a",
        "a/.",
        "a\\b",
        "C:/x",
        "a\nb",
        "a\x00",
    ],
)
def test_unsafe_paths_are_refused(path: str) -> None:
    """No path of a manifest can lead out of the artifact."""
    document = _document(_manifest())
    document["files"][0]["path"] = path

    assert unsafe_path_reason(path) is not None
    with pytest.raises(VerifyFailed) as caught:
        _read(document)
    assert caught.value.code == "verify.manifest-invalid"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"schema": "lmi-build/manifest/v2"}, "verify.manifest-schema"),
        ({"schema": None}, "verify.manifest-schema"),
        ({"extra": 1}, "verify.manifest-invalid"),
        ({"files": {}}, "verify.manifest-invalid"),
        ({"files": [1]}, "verify.manifest-invalid"),
        ({"files": [{"path": "a", "size": 1}]}, "verify.manifest-invalid"),
        ({"name": 3}, "verify.manifest-invalid"),
        ({"bounds": None}, "verify.manifest-invalid"),
    ],
)
def test_strange_manifests_are_refused(change: dict[str, Any], code: str) -> None:
    """An unknown schema, field or type is never guessed at."""
    with pytest.raises(VerifyFailed) as caught:
        _read({**_document(_manifest()), **change})
    assert caught.value.code == code


@pytest.mark.parametrize(
    "row",
    [
        {"size": -1},
        {"size": True},
        {"size": 1.5},
        {"sha256": "00"},
        {"sha256": "A" * 64},
        {"sha256": None},
    ],
)
def test_strange_rows_are_refused(row: dict[str, Any]) -> None:
    """A file needs a size and a digest of the right form."""
    document = _document(_manifest())
    document["files"][0].update(row)

    with pytest.raises(VerifyFailed) as caught:
        _read(document)
    assert caught.value.code == "verify.manifest-invalid"


def test_duplicate_and_nested_files_are_refused() -> None:
    """A path stands once, and is not a folder as well."""
    document = _document(_manifest())
    row = document["files"][0]
    for path in (row["path"], f"{row['path']}/deeper"):
        with pytest.raises(VerifyFailed, match=r"twice|both a file"):
            _read({**document, "files": [row, {**row, "path": path}]})


def test_duplicate_names_are_refused() -> None:
    """Two readers could take two different values."""
    text = _manifest().to_bytes().decode()
    doubled = text.replace('"name": "sample"', '"name": "sample", "name": "x"', 1)

    with pytest.raises(VerifyFailed, match="stands twice"):
        Manifest.from_bytes(doubled.encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{", b"[" * 100_000, b"null"])
def test_unreadable_manifests_are_refused(data: bytes) -> None:
    """Anything but an object is an error with a code, never a traceback."""
    with pytest.raises(VerifyFailed) as caught:
        Manifest.from_bytes(data)
    assert caught.value.code == "verify.manifest-unreadable"


def test_programmer_errors_are_value_errors() -> None:
    """A manifest that names itself or is not sorted cannot be made."""
    digest = Digest(digest_bytes(b""))
    rows = [FileEntry(path=p, size=0, digest=digest) for p in ("manifest.json",)]
    with pytest.raises(ValueError, match="itself"):
        make_manifest(sample_params(), rows, ledger=None)


def test_entry_helper_reads_the_file(tmp_path: Any) -> None:
    """The test helper's rows are those of the file."""
    (tmp_path / "f").write_bytes(b"abc")

    assert entry(tmp_path, "f").size == 3
