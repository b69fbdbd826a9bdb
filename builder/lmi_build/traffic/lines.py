"""Whole lines counted block by block, most of them by their shape."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

from lmi_build.traffic.times import second_of

if TYPE_CHECKING:
    from lmi_build.traffic.shapes import Shape
    from lmi_build.traffic.tally import Tally

_MOST_SHAPES = 16
# Texts of seconds kept before they become numbers.
_MOST_SECONDS = 1 << 16
# A shape that fits fewer than one line in so many of those it was tried on is given up.
_WORTH = 8


class LineReader(Protocol):
    """
    What knows the form of a line.

    Args:
        white: Bytes around a line that mean nothing; a line of them alone is no row.
    """

    white: bytes

    def count(self, line: bytes, tally: Tally) -> str:
        """Count one line with care; returns the kind of its fault, or nothing."""

    def shape(self, line: bytes) -> Shape | None:
        """The shape of a good line, if it has one that is safe."""


class LineCounter:
    """
    Counts whole lines.

    Args:
        reader: Reads one line.
        tally: What is filled; complete after `finish`.
        fast: Whether lines of one shape may go the fast way.
        line: Lines before the first block, such as a header.
    """

    def __init__(
        self, reader: LineReader, tally: Tally, *, fast: bool = True, line: int = 0
    ) -> None:
        self._reader = reader
        self._tally = tally
        self._line = line
        self._shapes: list[Shape] = []
        self._seconds: Counter[bytes] = Counter()
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
        if len(self._seconds) > _MOST_SECONDS:
            self.finish()

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
            self._tally.joint.add_all(inputs, outputs, checked=True)
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
            line = lines[start:end].strip(self._reader.white)
            start = end + 1
            if not line:
                continue
            fault = self._reader.count(line, self._tally)
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
        shape = self._reader.shape(line)
        if shape is None:
            return False
        ahead = rest[: _WORTH * 64 * (len(line) + 1)]
        matched = sum(1 for _ in shape.pattern.finditer(ahead))
        if matched * _WORTH < ahead.count(b"\n"):
            return False
        self._shapes.append(shape)
        return True

    def _locate(self, block: bytes, bad: dict[bytes, str]) -> None:
        """
        Number the lines of faults.

        The same text has the same fault, so equal lines are found by their text.
        """
        faults = self._tally.faults
        if not any(faults.wants_place(kind) for kind in set(bad.values())):
            return
        for number, line in enumerate(block.split(b"\n"), self._line + 1):
            kind = bad.get(line.strip(self._reader.white))
            if kind:
                faults.place(kind, number)
