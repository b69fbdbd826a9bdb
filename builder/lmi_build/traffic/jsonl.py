"""A JSONL log, counted block by block."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from lmi_build.traffic.faults import length_or_fault
from lmi_build.traffic.shapes import shape_of
from lmi_build.traffic.times import second_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lmi_build.traffic.shapes import Shape
    from lmi_build.traffic.tally import Columns, Tally

_WHITE = b" \t\r"
_MOST_SHAPES = 16
# A shape that fits fewer lines than this of those it was tried on is given up.
_WORTH = 8


class JsonlCounter:
    """
    Counts whole lines.

    Args:
        columns: Where the lengths stand.
        tally: What is filled; complete after `finish`.
        length: Length of a value; counts tokens where the columns hold text.
        fast: Whether lines of one shape may go the fast way.
    """

    def __init__(
        self,
        columns: Columns,
        tally: Tally,
        *,
        length: Callable[[Any], int | str] = length_or_fault,
        fast: bool = True,
    ) -> None:
        self._columns = columns
        self._tally = tally
        self._length = length
        self._input = columns.input.split(".")
        self._output = columns.output.split(".")
        self._arrival = columns.arrival.split(".") if columns.arrival else None
        self._line = 0  # lines before the block
        self._shapes: list[Shape] = []
        self._seconds: Counter[Any] = Counter()
        # Learning stops after so many shapes, good or not.
        self._tries = _MOST_SHAPES if fast else 0

    def feed(self, block: bytes) -> None:
        """Count a block of lines, each with its end."""
        rest = self._match(block, block.count(b"\n"))
        bad: dict[bytes, str] = {}
        while rest:
            rest = self._slow(rest, bad)
        if bad:
            self._locate(block, bad)
        self._line += block.count(b"\n")

    def finish(self) -> None:
        """Turn times that are still text into numbers."""
        for text, count in self._seconds.items():
            self._tally.arrive(second_of(text.decode()), count)
        self._seconds.clear()

    def _match(self, block: bytes, lines: int) -> bytes:
        """Count the lines of known shapes; returns the others."""
        for shape in self._shapes:
            inputs, outputs = shape.read(block, self._seconds)
            matched = len(inputs)
            if not matched:
                continue
            self._tally.joint.add_all(inputs, outputs)
            lines -= matched
            if not lines:
                return b""
            block = shape.pattern.sub(b"", block)
        return block

    def _slow(self, lines: bytes, bad: dict[bytes, str]) -> bytes:
        """Read lines as JSON; returns what is left once a new shape is known."""
        start = 0
        while start < len(lines):
            end = lines.index(b"\n", start)
            line = lines[start:end].strip(_WHITE)
            start = end + 1
            if not line:
                continue
            fault = self._count(line)
            if fault:
                bad[line] = fault
                self._tally.faults.count(fault)
            elif self._tries and self._learn(line, lines[start:]):
                rest = lines[start:]
                return self._match(rest, rest.count(b"\n"))
        return b""

    def _learn(self, line: bytes, rest: bytes) -> bool:
        """Make a shape of a line, if it fits enough of the next lines."""
        self._tries -= 1
        shape = shape_of(line, self._columns)
        if shape is None:
            return False
        ahead = rest[: _WORTH * 64 * (len(line) + 1)]
        matched = sum(1 for _ in shape.pattern.finditer(ahead))
        if matched * _WORTH < ahead.count(b"\n"):
            return False
        self._shapes.append(shape)
        return True

    def _count(self, line: bytes) -> str:
        """Count one line as JSON; returns the kind of its fault, or nothing."""
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            return "malformed"
        if not isinstance(row, dict):
            return "malformed"
        input_len = self._length(value_at(row, self._input))
        output_len = self._length(value_at(row, self._output))
        if isinstance(input_len, str):
            return input_len
        if isinstance(output_len, str):
            return output_len
        self._tally.joint.add(input_len, output_len)
        if self._arrival is not None:
            self._tally.arrive(second_of(value_at(row, self._arrival)))
        return ""

    def _locate(self, block: bytes, bad: dict[bytes, str]) -> None:
        """
        Number the lines of faults.

        The same text has the same fault, so equal lines are found by their text.
        """
        faults = self._tally.faults
        if not any(faults.wants_place(kind) for kind in set(bad.values())):
            return
        for number, line in enumerate(block.split(b"\n"), self._line + 1):
            kind = bad.get(line.strip(_WHITE))
            if kind:
                faults.place(kind, number)


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
