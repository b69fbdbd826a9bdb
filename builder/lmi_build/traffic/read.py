"""A log, whatever its form, counted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.log_columns import find_column, folded
from lmi_build.errors import SourceInvalid
from lmi_build.text import did_you_mean, join_words
from lmi_build.traffic.csv_log import CsvLines, read_rows, split_header
from lmi_build.traffic.faults import length_or_fault
from lmi_build.traffic.jsonl import JsonLines, paths_in
from lmi_build.traffic.lines import LineCounter
from lmi_build.traffic.parquet_log import MAGIC, read_parquet
from lmi_build.traffic.stream import open_log, whole_lines
from lmi_build.traffic.tally import Columns, Tally
from lmi_build.traffic.tokens import token_counter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from lmi_build.values.settings import Settings

# Lines in which names of columns are looked for.
_LOOK_AT = 1000
_NAMES_TOLD = 12
_MEANINGS = {
    "input": "input lengths",
    "output": "output lengths",
    "arrival": "times of arrival",
}
_BLANK_LINES = re.compile(rb"(?:[ \t\r]*\n)+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\- ]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """
    How a log is read.

    Args:
        input_column: Column of the prompt's length; None looks for a usual name.
        output_column: Column of the answer's length; the same.
        arrival_column: Column of the time of arrival; the same.
        timed: Whether times of arrival are needed, by name or by a usual one.
        times_if_any: Whether they are read where a column of a usual name has them.
        max_bad_share: Share of rows without usable lengths above which the log is
            refused.
        tokenizer: Counts the tokens of the columns' texts; None where they hold
            lengths.
    """

    input_column: str | None = None
    output_column: str | None = None
    arrival_column: str | None = None
    timed: bool = False
    times_if_any: bool = False
    max_bad_share: Fraction = Fraction(1, 100)
    tokenizer: Path | None = None


def read_log(source: str, options: ReadOptions, settings: Settings) -> Tally:
    """
    Count a log; nothing of it is kept but counts.

    Args:
        source: A path, `-`, or `s3://bucket/key`.
        options: How to read it.
        settings: Credentials and endpoint of S3.

    Raises:
        SourceInvalid: `traffic.unreadable`, `traffic.empty`, `traffic.no-column`,
            `traffic.too-many-bad` and others of this room.
        RemoteFailed: S3 refused or vanished.
    """
    tally = Tally()
    length: Callable[[Any], int | str] = length_or_fault
    if options.tokenizer is not None:
        length = token_counter(options.tokenizer)
    with open_log(source, settings) as log:
        if log.head.startswith(MAGIC):
            with log.seekable() as file:
                read_parquet(
                    file,
                    source,
                    tally,
                    choose=lambda present: choose_columns(present, source, options),
                    length=length,
                )
        else:
            lines = whole_lines(log.blocks(), source)
            _read_lines(lines, source, options, tally, length)
    _judge(tally, source, options)
    return tally


def _read_lines(
    blocks: Iterator[bytes],
    source: str,
    options: ReadOptions,
    tally: Tally,
    length: Callable[[Any], int | str],
) -> None:
    """Count JSONL or CSV, whichever the first row is."""
    line, head = 0, b""
    for block in blocks:
        blank = _BLANK_LINES.match(block)
        line += block[: blank.end()].count(b"\n") if blank else 0
        head = block[blank.end() :] if blank else block
        if head:
            break
    if not head:
        return
    if b"\0" in head:
        raise SourceInvalid(
            f"`{source}` is no text: it has zero bytes, and is no Parquet either",
            code="traffic.not-a-log",
            hints=("write it as JSONL, CSV (in UTF-8) or Parquet",),
        )
    if head.lstrip()[:1] == b"[":
        raise SourceInvalid(
            f"`{source}` begins like one JSON array",
            code="traffic.not-a-log",
            hints=("write one object in each line: `jq -c '.[]' LOG`",),
        )
    if head.lstrip()[:1] == b"{":
        present = list(paths_in(islice(_lines(head), _LOOK_AT)))
        columns = choose_columns(present, source, options)
        tally.timed = columns.arrival is not None
        reader = JsonLines(columns, length=length)
        counter = LineCounter(reader, tally, line=line)
        for block in chain((head,), blocks):
            counter.feed(block)
        counter.finish()
        return
    first, _, rest = head.partition(b"\n")
    header, delimiter = split_header(first.rstrip(b"\r"))
    columns = choose_columns(header, source, options)
    tally.timed = columns.arrival is not None
    rows = CsvLines(header, delimiter, columns, length=length)
    read_rows(chain((rest,), blocks), rows, tally, line=line + 1)


def _lines(block: bytes) -> Iterator[bytes]:
    start = 0
    while (end := block.find(b"\n", start)) >= 0:
        yield block[start:end]
        start = end + 1


def choose_columns(
    present: Sequence[str], source: str, options: ReadOptions
) -> Columns:
    """
    The columns that are read, as the log spells them.

    Args:
        present: Every column of the log's beginning.
        source: What messages call the log.
        options: Names that were asked for.

    Raises:
        SourceInvalid: `traffic.no-column`.
    """
    return Columns(
        input=_column("input", options.input_column, present, source),
        output=_column("output", options.output_column, present, source),
        arrival=_arrival(options, present, source),
    )


def _arrival(options: ReadOptions, present: Sequence[str], source: str) -> str | None:
    if options.timed or options.arrival_column is not None:
        return _column("arrival", options.arrival_column, present, source)
    return find_column("arrival", present) if options.times_if_any else None


def _column(
    meaning: str, asked: str | None, present: Sequence[str], source: str
) -> str:
    if asked is None:
        found = find_column(meaning, present)
    else:
        same = [name for name in present if name == asked]
        alike = [name for name in present if folded(name) == folded(asked)]
        found = next(iter(same + alike), None)
    if found is not None:
        return found
    # A key can be somebody's text: only what looks like a name is printed.
    names = [name for name in present if _NAME.fullmatch(name) and len(present) > 1]
    near = did_you_mean(asked, names) if asked else None
    told = join_words(sorted(names)[:_NAMES_TOLD], last="and")
    more = f" and {len(present) - _NAMES_TOLD} more" * (len(present) > _NAMES_TOLD)
    nameless = "none that looks like a name" if present else "none"
    what = (
        f"no column `{asked}`" if asked else f"no usual column of {_MEANINGS[meaning]}"
    )
    hints = (f"did you mean `{near}`?",) if near else ()
    raise SourceInvalid(
        f"`{source}` has {what} in its first rows; it has {told or nameless}{more}",
        code="traffic.no-column",
        hints=(
            *hints,
            f"name it: `--{meaning}-column NAME`; a dot goes into an object",
        ),
    )


def _judge(tally: Tally, source: str, options: ReadOptions) -> None:
    """Refuse a log without requests, or with too many rows that say nothing."""
    if not tally.rows:
        raise SourceInvalid(
            f"`{source}` has no rows",
            code="traffic.empty",
            hints=("a log has one request in each row",),
        )
    bad = tally.faults.total
    if bad > options.max_bad_share * tally.rows or not tally.joint.total:
        hints = ["look whether the columns are right: `--input-column`"]
        if options.tokenizer is None and "not-a-number" in tally.faults.counts:
            hints.append("lengths of texts are counted with `--tokenizer`")
        if tally.joint.total:
            share = math.ceil(100 * bad / tally.rows) / 100
            hints.append(f"or allow more: `--max-bad-share {share:g}`")
        raise SourceInvalid(
            f"{bad:,} of {tally.rows:,} rows of `{source}` have no usable lengths"
            f" ({bad / tally.rows:.2%}, allowed {float(options.max_bad_share):.2%}):"
            f" {'; '.join(fault_lines(tally))}",
            code="traffic.too-many-bad",
            hints=tuple(hints),
        )


def fault_lines(tally: Tally) -> Iterable[str]:
    """Each kind of fault with its count and first places."""
    for kind, count in tally.faults.counts.items():
        places = ", ".join(str(place) for place in tally.faults.places(kind))
        more = ", ..." if count > len(tally.faults.places(kind)) else ""
        yield f"{kind} {count:,} ({tally.unit} {places}{more})"
