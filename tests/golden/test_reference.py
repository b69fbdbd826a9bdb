"""Generated pages say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gen_docs
from lmi_build import registry
from lmi_build.catalog.support import PROOFS, load_support

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "cli.md",
        "errors.md",
        "instances.md",
        "recipe.md",
        "releases.md",
        "support.md",
    ],
)
def test_reference_is_current(name: str) -> None:
    """A page in docs/reference is what the generator writes today."""
    expected = gen_docs.pages()[name]

    assert (gen_docs.REFERENCE / name).read_text("utf-8") == expected


def test_support_matrix_tells_the_truth() -> None:
    """A provider is installed exactly when the matrix does not call it absent."""
    rows = load_support()
    installed = {
        *registry.names(registry.QUANTIZERS),
        *registry.names(registry.BACKENDS),
    }

    assert {row.name for row in rows if row.proof != "absent"} <= installed
    assert {row.proof for row in rows} <= set(PROOFS)


def test_links_of_the_documentation_lead_somewhere() -> None:
    """Every relative link in a Markdown page names a file that exists."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not (page.parent / link).exists()
    ]

    assert broken == []
