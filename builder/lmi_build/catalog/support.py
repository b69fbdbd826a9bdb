"""How far each provider was proven, read from `support.toml`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROOFS = ("run", "read", "absent")


@dataclass(frozen=True, kw_only=True, slots=True)
class SupportRow:
    """
    One provider.

    Args:
        name: As a recipe names it.
        kind: `quantizer` or `backend`.
        offers: What it does, for those that are not installed.
        proof: One of `PROOFS`.
        note: What was seen.
    """

    name: str
    kind: str
    offers: str
    proof: str
    note: str


def load_support() -> list[SupportRow]:
    """Every known provider, in the file's order."""
    path = Path(__file__).parent / "support.toml"
    rows = tomllib.loads(path.read_text("utf-8"))["provider"]
    return [SupportRow(**row) for row in rows]
