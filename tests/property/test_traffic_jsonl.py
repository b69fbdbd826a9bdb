"""The fast way through a JSONL log gives what a JSON reader gives."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from lmi_build.traffic.csv_log import CsvLines, read_rows
from lmi_build.traffic.faults import KINDS, Faults
from lmi_build.traffic.jsonl import JsonLines
from lmi_build.traffic.lines import LineCounter
from lmi_build.traffic.shapes import shape_of
from lmi_build.traffic.stream import unpacked, whole_lines
from lmi_build.traffic.tally import Columns, Tally

COLUMNS = Columns(input="usage.in", output="out", arrival="t")
UNTIMED = Columns(input="usage.in", output="out")

LENGTHS: st.SearchStrategy[Any] = st.one_of(
    st.integers(0, 20_000),
    st.integers(-3, 10**9),
    st.sampled_from([None, True, "7", "", " 9 ", "x", 1.0, 2.5, -0.0, 1e30, [], {}]),
)
TIMES: st.SearchStrategy[Any] = st.one_of(
    st.integers(0, 2**70),
    st.floats(0, 1e19),
    st.sampled_from(
        [
            None,
            "2024-05-01T10:00:00Z",
            "2024-05-01 10:00:01.250000",
            "2024-13-01T10:00:00",
            "2024-05-01T10:00:00+02:00",
            1714557600123,
            1714557600123456789,
            -5,
        ]
    ),
)
EXTRA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["in", "out", "t", "x.y", '"'],
            ),
            inner,
            max_size=2,
        )
    ),
    max_leaves=3,
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """One line: mostly of one shape, sometimes odd, sometimes no JSON at all."""
    row: dict[str, Any] = {
        "id": draw(st.text(max_size=5)),
        "usage": {"in": draw(LENGTHS), "x": draw(EXTRA)},
        "out": draw(LENGTHS),
        "t": draw(TIMES),
    }
    if draw(st.integers(0, 4)) == 0:
        row["more"] = draw(EXTRA)
    for name in draw(st.sets(st.sampled_from(list(row)), max_size=1)):
        if draw(st.booleans()):
            del row[name]
    text = json.dumps(
        row,
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([None, (",", ":")])),
    )
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    line = text.encode()
    twist = draw(st.integers(0, 9))
    if twist == 0:
        line = line[: draw(st.integers(0, len(line)))]
    elif twist == 1:
        line = line[:-1] + b', "out": 3}'
    elif twist == 2:
        line = b"x" + line
    elif twist == 3:
        line += b" \r"
    elif twist == 4:
        line = b"  " + line + b"\xff" * draw(st.integers(0, 1))
    return line.replace(b"\n", b" ")


PLAIN = b'{"id":"a","usage":{"in":%d,"x":1},"out":%d,"t":%d}'
LOG = st.lists(
    lines()
    | st.builds(
        lambda *values: PLAIN % values,
        st.integers(0, 10**8),
        st.integers(0, 99),
        st.integers(0, 10**13),
    )
)


def counted(log: bytes, columns: Columns, *, fast: bool, cut: int) -> Tally:
    """A log counted in blocks of some size."""
    tally = Tally(timed=columns.arrival is not None)
    counter = LineCounter(JsonLines(columns), tally, fast=fast)
    pieces = (log[i : i + cut] for i in range(0, len(log), cut))
    for block in whole_lines(unpacked(pieces, "log"), "log"):
        counter.feed(block)
    counter.finish()
    return tally


def told(faults: Faults) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Counts and places of every kind."""
    return {kind: (faults.counts[kind], faults.places(kind)) for kind in faults.counts}


@given(LOG, st.sampled_from([COLUMNS, UNTIMED]), st.integers(1, 400))
@example([PLAIN % (1, 2, 3), PLAIN % (10**7, 2, 3)], UNTIMED, 400)
def test_fast_and_slow_agree(log: list[bytes], columns: Columns, cut: int) -> None:
    """Lengths, times, faults and their lines, whatever the lines and the blocks."""
    text = b"\n".join(log * 3)
    fast = counted(text, columns, fast=True, cut=cut)
    slow = counted(text, columns, fast=False, cut=10**6)

    assert fast.joint == slow.joint
    assert fast.arrivals == slow.arrivals
    assert fast.untimed == slow.untimed
    assert told(fast.faults) == told(slow.faults)


@given(lines(), st.sampled_from([COLUMNS, UNTIMED]))
def test_a_shape_matches_its_own_line(line: bytes, columns: Columns) -> None:
    """What a line is made into accepts that line, and reads the same lengths."""
    line = line.strip(b" \r")
    shape = shape_of(line, columns)
    if shape is None:
        return
    row = json.loads(line)

    assert shape.read(line + b"\n", Counter()) == ([row["usage"]["in"]], [row["out"]])


def test_lines_of_one_shape_take_the_fast_way() -> None:
    """The law above is not empty: a plain log is read by one shape."""
    line = PLAIN % (5, 6, 7)
    shape = shape_of(line, COLUMNS)

    assert shape is not None
    assert shape.read((line + b"\n") * 9, Counter()) == ([5] * 9, [6] * 9)


@given(LOG)
def test_every_line_is_counted_once(log: list[bytes]) -> None:
    tally = counted(b"\n".join(log), UNTIMED, fast=True, cut=100)

    assert tally.rows == sum(bool(line.strip(b" \t\r")) for line in log)
    assert set(tally.faults.counts) <= set(KINDS)


FIELDS = (
    st.integers(-2, 10**8).map(str)
    | st.sampled_from(["", "7.0", " 8", "x", "NaN", "2024-05-01 10:00:00.5", "\xe9"])
    | st.text("ab, 1;\r", max_size=4)
)
HEADER = ["id", "in", "t", "out"]


@given(
    st.lists(st.lists(FIELDS, min_size=3, max_size=5), max_size=12),
    st.integers(0, 99),
    st.sampled_from(["in", "t", None]),
)
def test_csv_rows_are_read_alike_fast_and_slow(
    rows: list[list[str]], length: int, arrival: str | None
) -> None:
    """Rows without quotes, by their shape and by the CSV reader of the library."""
    columns = Columns(input="in", output="out", arrival=arrival)
    rows += [["a", str(length), "1714557600", "5"]] * 3
    log = "".join(",".join(row) + "\n" for row in rows).encode()
    fast, slow = (Tally(timed=arrival is not None) for _ in range(2))
    reader = CsvLines(HEADER, ",", columns)
    read_rows(iter([log]), reader, fast, line=1)
    counter = LineCounter(reader, slow, fast=False, line=1)
    counter.feed(log)
    counter.finish()

    assert fast.joint == slow.joint
    assert fast.arrivals == slow.arrivals
    assert told(fast.faults) == told(slow.faults)
    assert fast.rows == sum(bool(row.strip("\r")) for row in log.decode().split("\n"))
