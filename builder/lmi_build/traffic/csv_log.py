"""A CSV log: a header, then one request in each row."""

from __future__ import annotations

import csv
import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid
from lmi_build.traffic.faults import length_or_fault
from lmi_build.traffic.lines import LineCounter
from lmi_build.traffic.shapes import EPOCHS, ISO_REST, ISO_SECOND, LENGTH, Shape
from lmi_build.traffic.times import second_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lmi_build.traffic.tally import Columns, Tally

_DELIMITERS = ",;\t|"
_MOST_FIELD_CHARS = 64 << 20
# Times as JSON has them, without its quotes.
_TIMES = (*EPOCHS, (ISO_SECOND + ISO_REST).replace(b'"', b""))


class CsvLines:
    """
    Reads rows that stand in one line each.

    Args:
        header: Names of the columns.
        delimiter: What stands between two fields.
        columns: Those that are read.
        length: Length of a field, or the kind of its fault.
    """

    white = b"\r"

    def __init__(
        self,
        header: Sequence[str],
        delimiter: str,
        columns: Columns,
        *,
        length: Callable[[Any], int | str] = length_or_fault,
    ) -> None:
        self._width = len(header)
        self.delimiter = delimiter
        self._length = length
        self._at = [header.index(name) for name in columns.wanted]

    def count(self, line: bytes, tally: Tally) -> str:
        """Count one line; returns the kind of its fault, or nothing."""
        try:
            row = next(csv.reader([_text(line)], delimiter=self.delimiter))
        except (csv.Error, StopIteration):
            return "malformed"
        return self.count_row(row, tally)

    def count_row(self, row: Sequence[str], tally: Tally) -> str:
        """Count one row; returns the kind of its fault, or nothing."""
        if len(row) != self._width:
            return "malformed"
        values = [row[at] for at in self._at]
        return tally.count(
            self._length(values[0]),
            self._length(values[1]),
            second_of(values[2]) if tally.timed else None,
        )

    def shape(self, line: bytes) -> Shape | None:
        """The shape of a row without quotes, if lengths and time are plain."""
        if self._length is not length_or_fault or len(set(self._at)) < len(self._at):
            return None
        mark = self.delimiter.encode()
        fields = line.split(mark)
        if len(fields) != self._width:
            return None
        first, second = sorted(self._at[:2])
        fixed = second == first + 1
        parts = [b"[^" + re.escape(mark) + rb'"\r\n]*'] * self._width
        parts[first] = b"(" + LENGTH + (b"" if fixed else b")")
        parts[second] = (b"" if fixed else b"(") + LENGTH + b")"
        if len(self._at) > len(("input", "output")):
            time = fields[self._at[2]]
            form = next((form for form in _TIMES if re.fullmatch(form, time)), None)
            if form is None:
                return None
            parts[self._at[2]] = form.replace(b"(", b"(?P<time>", 1)
        pattern = rb"(?m:^)" + re.escape(mark).join(parts) + rb"\r?\n"
        return Shape(
            pattern=re.compile(pattern),
            between=mark * fixed,
            input_first=self._at[0] < self._at[1],
            timed=len(self._at) > len(("input", "output")),
        )


def split_header(line: bytes) -> tuple[list[str], str]:
    """The names of a header, and the delimiter that it has most of."""
    text = _text(line)
    delimiter = max(_DELIMITERS, key=text.count)
    names = next(csv.reader([text], delimiter=delimiter), [])
    return [name.strip() for name in names], delimiter


def read_rows(
    blocks: Iterator[bytes], reader: CsvLines, tally: Tally, *, line: int
) -> None:
    """
    Count the rows after a header.

    As long as there is no quote, a row is a line. From the first quote on a row may
    have several lines, and the rest is read row by row.

    Args:
        blocks: Whole lines.
        reader: Knows the header.
        tally: What is filled.
        line: Lines before the blocks.
    """
    counter = LineCounter(reader, tally, line=line)
    for block in blocks:
        if b'"' in block:
            counter.finish()
            _read_quoted(chain((block,), blocks), reader, tally, line=line)
            return
        counter.feed(block)
        line += block.count(b"\n")
    counter.finish()


def _read_quoted(
    blocks: Iterable[bytes], reader: CsvLines, tally: Tally, *, line: int
) -> None:
    csv.field_size_limit(_MOST_FIELD_CHARS)
    rows = csv.reader(_lines(blocks), delimiter=reader.delimiter)
    try:
        for row in rows:
            fault = reader.count_row(row, tally) if row else ""
            if fault:
                tally.faults.count(fault)
                tally.faults.place(fault, line + rows.line_num)
    except csv.Error as error:
        raise SourceInvalid(
            f"the CSV cannot be read from line {line + rows.line_num:,} on: {error}",
            code="traffic.not-a-log",
            hints=("look for a quote that is never closed",),
        ) from error


def _lines(blocks: Iterable[bytes]) -> Iterator[str]:
    for block in blocks:
        for line in block.split(b"\n")[:-1]:
            yield _text(line.removesuffix(b"\r")) + "\n"


def _text(line: bytes) -> str:
    # Only lengths are read; what is no UTF-8 elsewhere does not matter.
    return line.decode("utf-8", "replace")
