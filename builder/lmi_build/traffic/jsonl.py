"""A JSONL log: one object in each line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.traffic.faults import length_or_fault
from lmi_build.traffic.shapes import shape_of
from lmi_build.traffic.times import second_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lmi_build.traffic.shapes import Shape
    from lmi_build.traffic.tally import Columns, Tally


class JsonLines:
    """
    Reads JSON lines.

    Args:
        columns: Where the lengths stand; a dot goes into an object.
        length: Length of a value, or the kind of its fault.
    """

    white = b" \t\r"

    def __init__(
        self,
        columns: Columns,
        *,
        length: Callable[[Any], int | str] = length_or_fault,
    ) -> None:
        self._columns = columns
        self._length = length
        self._input = columns.input.split(".")
        self._output = columns.output.split(".")
        self._arrival = columns.arrival.split(".") if columns.arrival else None

    def shape(self, line: bytes) -> Shape | None:
        """The shape of a good line; none where lengths are those of texts."""
        if self._length is not length_or_fault:
            return None
        return shape_of(line, self._columns)

    def count(self, line: bytes, tally: Tally) -> str:
        """Count one line; returns the kind of its fault, or nothing."""
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            return "malformed"
        if not isinstance(row, dict):
            return "malformed"
        time = value_at(row, self._arrival) if self._arrival else None
        return tally.count(
            self._length(value_at(row, self._input)),
            self._length(value_at(row, self._output)),
            second_of(time),
        )


def value_at(row: dict[str, Any], path: list[str]) -> Any:
    """
    The value at a dotted path, or None.

    A key that itself has dots is found where no object is in the way.
    """
    found: Any = row
    for index, key in enumerate(path):
        if not isinstance(found, dict):
            return None
        if key not in found:
            return found.get(".".join(path[index:])) if index + 1 < len(path) else None
        found = found[key]
    return found


def paths_in(lines: Iterable[bytes]) -> Iterator[str]:
    """Every dotted path to a value in some lines, in order of appearance."""
    seen: set[str] = set()
    for line in lines:
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            for path in _paths(row, ""):
                if path not in seen:
                    seen.add(path)
                    yield path


def _paths(row: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield prefix + key
