"""What request logs call their columns, read from `log_columns.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.catalog.tables import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, kw_only=True, slots=True)
class LogColumn:
    """
    One meaning.

    Args:
        names: What logs call it, best first.
    """

    names: tuple[str, ...]


@cache
def column_names(meaning: str) -> tuple[str, ...]:
    """
    Names of `input`, `output` or `arrival`, best first.

    Raises:
        KeyError: There is no such meaning.
    """
    rows = read_rows(LogColumn, "log_columns.toml", package="lmi_build.catalog")
    return rows[meaning].names


def find_column(meaning: str, present: Iterable[str]) -> str | None:
    """The column of this meaning among those of a log, as the log spells it."""
    by_name: dict[str, str] = {}
    for name in present:
        by_name.setdefault(folded(name), name)
    wanted = (folded(name) for name in column_names(meaning))
    return next((by_name[name] for name in wanted if name in by_name), None)


def folded(name: str) -> str:
    """A name without case, spaces, dashes and underscores."""
    return name.lower().translate({ord(mark): None for mark in " -_"})
