"""Every error code is documented, and nothing else is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lmi_build
from lmi_build.catalog.error_docs import load_error_docs

PACKAGE = Path(lmi_build.__file__).parent
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\.[a-z0-9]+(-[a-z0-9]+)*\Z")
# Codes of notes, which explain themselves and end nothing.
NOTES = {"build.waiting", "job.log"}


def codes_in_source() -> set[str]:
    """Every string that is passed as `code=` anywhere in the package."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code":
                strings = (
                    n for n in ast.walk(node.value) if isinstance(n, ast.Constant)
                )
                found |= {n.value for n in strings if isinstance(n.value, str)}
    return {code for code in found if CODE.match(code)}


def mentioned() -> str:
    """All source text, for codes that travel through variables."""
    return "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))


def test_every_code_is_documented() -> None:
    """A code that can be raised has a page."""
    assert codes_in_source() - set(load_error_docs()) - NOTES == set()


def test_every_page_is_of_a_code() -> None:
    """A page stands for a code that the source still has."""
    text = mentioned()

    assert [code for code in load_error_docs() if f'"{code}"' not in text] == []


def test_pages_say_something() -> None:
    """Title, cause and fix are sentences; the code is a slug with a room."""
    for code, doc in load_error_docs().items():
        assert CODE.match(code), code
        assert len(doc.title) > 8, code
        assert len(doc.cause.split()) > 3, code
        assert len(doc.fix.split()) > 1, code
