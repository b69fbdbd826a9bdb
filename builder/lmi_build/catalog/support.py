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
class Seen:
    """
    How far one target of a backend was proven.

    Args:
        target: A device, or one of the kinds of artifact.
        proof: One of `PROOFS`.
        what: What was built, run or read.
        date: When that was last done. Year-month-day.
    """

    target: str
    proof: str
    what: str
    date: str


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
        artifact: What a backend makes; empty for quantizers.
        seen: The proof of each of its targets.
    """

    name: str
    kind: str
    offers: str
    proof: str
    note: str
    artifact: str = ""
    seen: tuple[Seen, ...] = ()


def load_support() -> list[SupportRow]:
    """Every known provider, in the file's order."""
    path = Path(__file__).parent / "support.toml"
    rows = tomllib.loads(path.read_text("utf-8"))["provider"]
    return [
        SupportRow(**{**row, "seen": tuple(Seen(**s) for s in row.get("seen", ()))})
        for row in rows
    ]
