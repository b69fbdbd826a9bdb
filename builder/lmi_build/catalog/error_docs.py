"""What every error code means, read from `errors/<room>.toml`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorDoc:
    """
    One code explained.

    Args:
        title: What it says in one line.
        cause: How it comes about.
        fix: What to do.
    """

    title: str
    cause: str
    fix: str


def load_error_docs() -> dict[str, ErrorDoc]:
    """Every documented code, sorted."""
    docs: dict[str, ErrorDoc] = {}
    for path in sorted((Path(__file__).parent / "errors").glob("*.toml")):
        for code, fields in tomllib.loads(path.read_text("utf-8")).items():
            docs[code] = ErrorDoc(**fields)
    return dict(sorted(docs.items()))
