"""Values that are no length: counted, and the first places of each kind kept."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lmi_build.sizing.lengths import LARGEST_LEN

if TYPE_CHECKING:
    from collections.abc import Mapping

# Places kept of each kind.
MOST_PLACES = 5
KINDS = {
    "malformed": "the line is no JSON object or CSV row",
    "missing": "a length is missing",
    "negative": "a length is negative",
    "absurd": f"a length is above {LARGEST_LEN:,} tokens",
    "not-a-number": "a length is no whole number",
    "not-a-text": "what should be counted in tokens is neither text nor messages",
}


class Faults:
    """
    Rows left out, by kind.

    Nothing of a row's text is kept: only the number of its line.
    """

    __slots__ = ("_counts", "_places")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._places: dict[str, list[int]] = {}

    def count(self, kind: str, times: int = 1) -> None:
        """One more fault; its place is told by `place`."""
        self._counts[kind] = self._counts.get(kind, 0) + times

    def wants_place(self, kind: str) -> bool:
        """Whether further places of a kind are kept."""
        return len(self._places.get(kind, ())) < MOST_PLACES

    def place(self, kind: str, line: int) -> None:
        """Where one fault stands; called in the order of the log."""
        places = self._places.setdefault(kind, [])
        if len(places) < MOST_PLACES:
            places.append(line)

    @property
    def total(self) -> int:
        """Rows left out."""
        return sum(self._counts.values())

    @property
    def counts(self) -> Mapping[str, int]:
        """Kind to rows."""
        return {kind: self._counts[kind] for kind in KINDS if kind in self._counts}

    def places(self, kind: str) -> tuple[int, ...]:
        """The first lines with a fault of this kind."""
        return tuple(self._places.get(kind, ()))


def length_or_fault(value: Any) -> int | str:
    """
    A length, or the kind of its fault.

    Whole floats are lengths: tables with gaps hold their integers as floats. So are
    decimal numbers, which databases write, and numbers in strings, which is what CSV
    has.
    """
    if value is None or value == "":
        return "missing"
    if isinstance(value, str):
        return _from_text(value.strip())
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return "not-a-number"
    if value != value:  # noqa: PLR0124 - NaN, which stands for nothing
        return "missing"
    if value in {float("inf"), float("-inf")} or value != int(value):
        return "not-a-number"
    if value < 0:
        return "negative"
    return int(value) if value <= LARGEST_LEN else "absurd"


# More digits than any length has; `int` refuses thousands of them.
_MOST_TEXT = 40


def _from_text(text: str) -> int | str:
    if text.lower() in {"", "nan", "null", "none", "na", "n/a", "-"}:
        return "missing"
    if not text.isascii() or len(text) > _MOST_TEXT or "_" in text:
        return "not-a-number"
    try:
        return length_or_fault(int(text))
    except ValueError:
        pass
    try:
        return length_or_fault(float(text))
    except ValueError:
        return "not-a-number"
