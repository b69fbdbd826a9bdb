"""The bytes that name an artifact: they may change only on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmi_build.digest import digest_bytes
from lmi_build.package.provenance import provenance_statement
from lmi_build.package.worker import make_manifest
from lmi_build.values.manifest import FileEntry
from packed import sample_facts, sample_params

HERE = Path(__file__).parent
FILES = [
    FileEntry(path=path, size=len(path), digest=digest_bytes(path.encode()))
    for path in ("engine/model.onnx", "model.py", "serving.properties")
]


def _params() -> dict[str, Any]:
    facts = sample_facts(kind="hub", source="owner/name", revision="0" * 40)
    return sample_params(facts=facts)


def _manifest() -> bytes:
    return make_manifest(_params(), list(FILES), ledger=None).to_bytes()


def _provenance() -> bytes:
    return provenance_statement(_params(), FILES, version="0.0.0")


@pytest.mark.parametrize(
    ("name", "make"),
    [("manifest.json", _manifest), ("provenance.json", _provenance)],
)
def test_bytes_are_kept(name: str, make: Any, *, update_golden: bool) -> None:
    """
    A change here gives every artifact another identity.

    Rewrite with `pytest tests/golden --update-golden`, and bump `PACKAGE_SALT`.
    """
    path = HERE / f"sample-{name}"
    if update_golden:
        path.write_bytes(make())
    data = path.read_bytes()

    assert make() == data
    assert json.loads(data)
