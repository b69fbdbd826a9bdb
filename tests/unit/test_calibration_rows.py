"""Laws of reading calibration rows: what is text, what is left out, what is refused."""

from __future__ import annotations

import gzip
import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.errors import LmiBuildError, SourceInvalid
from lmi_build.quantizers import calibration_rows
from lmi_build.quantizers.calibration_rows import Tally, read_documents

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.quantizers.calibration_rows import Render


def read(path: Path, *, render: Render | None = None) -> list[str]:
    """Every document of a file."""
    return list(read_documents([(path, path.name)], Tally(), render=render))


def tag(messages: Any) -> str:
    """A template that shows who said what."""
    return "".join(f"<{m['role']}:{m['content']}>" for m in messages)


ROWS: list[tuple[dict[str, Any], str, str]] = [
    ({"text": "one"}, "one", "<user:one>"),
    ({"prompt": "two"}, "two", "<user:two>"),
    ({"content": "three", "id": 7}, "three", "<user:three>"),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "bot", "content": "b"},
            ]
        },
        "a\nb",
        "<user:a><assistant:b>",
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]
        },
        "a\nb",
        "<user:a><assistant:b>",
    ),
    ({"prompt": "a", "completion": "b"}, "a\nb", "<user:a><assistant:b>"),
    (
        {"instruction": "a", "input": "c", "output": "b"},
        "a\n\nc\nb",
        "<user:a\n\nc><assistant:b>",
    ),
    (
        {"instruction": "a", "input": "", "output": "b"},
        "a\nb",
        "<user:a><assistant:b>",
    ),
    ({"question": "a", "answer": "b"}, "a\nb", "<user:a><assistant:b>"),
    (
        {
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        },
        "a\nb",
        "<user:a><assistant:b>",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        "a",
        "<user:a>",
    ),
    ({"messages": None, "text": "fallback"}, "fallback", "<user:fallback>"),
]


@pytest.mark.parametrize(("row", "plain", "rendered"), ROWS)
def test_rows_give_their_text(
    row: dict[str, Any], plain: str, rendered: str, tmp_path: Path
) -> None:
    """Each known layout is read; with a template, who speaks is kept."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n\n")

    assert read(path) == [plain]
    assert read(path, render=tag) == [rendered]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_one_row_a_line_whatever_the_name(name: str, tmp_path: Path) -> None:
    """Lines are read from `.json` and out of gzip; a byte order mark is skipped."""
    data = b'\xef\xbb\xbf{"text": "one"}\r\n\n{"text": "two"}'
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)

    assert read(tmp_path / name) == ["one", "two"]


def test_a_json_array_is_rows(tmp_path: Path) -> None:
    """An array holds rows; they are numbered in messages."""
    path = tmp_path / "rows.json"
    path.write_text(' [{"text": "one"}, {"text": "two"}, 3]')
    documents = read_documents([(path, "rows.json")], Tally())

    assert [next(documents), next(documents)] == ["one", "two"]
    with pytest.raises(SourceInvalid, match="row 3"):
        next(documents)


def test_a_huge_array_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read in pieces is not read at all beyond a bound."""
    monkeypatch.setattr(calibration_rows, "_MAX_ARRAY_BYTES", 10)
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "one"}]')

    with pytest.raises(SourceInvalid) as caught:
        read(path)

    assert caught.value.code == "calibration.unreadable"
    assert ".jsonl" in caught.value.message


def test_csv_is_read_by_its_header(tmp_path: Path) -> None:
    """Quoted fields may hold commas and line ends."""
    path = tmp_path / "rows.csv"
    path.write_text('id,text\n1,"one, two\nthree"\n2,four\n', newline="")

    assert read(path) == ["one, two\nthree", "four"]


def test_empty_rows_are_counted_not_read(tmp_path: Path) -> None:
    """Null, NaN and blank text is left out, and its number is known."""
    path = tmp_path / "rows.jsonl"
    rows = [{"text": None}, {"text": math.nan}, {"text": " "}, {"text": "x"}]
    rows.append({"messages": [{"role": "user", "content": None}]})
    path.write_text("\n".join(json.dumps(row) for row in rows))
    tally = Tally()

    assert list(read_documents([(path, path.name)], tally, render=tag)) == ["<user:x>"]
    assert (tally.num_documents, tally.num_empty) == (1, 4)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"label": "x", "idx": 1}', "`label`, `idx`"),
        ('{"text": 5}', "`text` is a number"),
        ('{"messages": [{"role": "user"}]}', "role and content"),
        ('{"messages": "hello"}', "role and content"),
    ],
)
def test_bad_rows_are_named(text: str, part: str, tmp_path: Path) -> None:
    """A row that cannot be used is named by file and line, with what it has."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + text)

    with pytest.raises(SourceInvalid) as caught:
        read(path)

    assert caught.value.code == "calibration.row"
    assert "rows.jsonl:2" in caught.value.message
    assert part in caught.value.message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a,b\n1,2\n", "`a`, `b`"),
        ("text\nx,y\n", "more fields"),
        ('text\n"x', "rows.csv"),
    ],
)
def test_bad_tables_are_named(text: str, part: str, tmp_path: Path) -> None:
    """No column with text, a row too long, a quote that never ends."""
    path = tmp_path / "rows.csv"
    path.write_text(text)

    with pytest.raises(SourceInvalid) as caught:
        read(path)

    assert caught.value.code == "calibration.row"
    assert part in caught.value.message


@pytest.mark.parametrize(
    ("name", "data", "where"),
    [
        ("x.txt", b"\xff\xfe\x00", "x.txt"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "x.jsonl:2"),
        ("x.csv", b"text\n\xff\n", "x.csv"),
        ("x.txt.gz", b"not gzip", "x.txt.gz"),
        # Without the second it was made in: names of tests must not change.
        (
            "x.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-20],
            "x.jsonl.gz",
        ),
    ],
)
def test_broken_bytes_are_refused(
    name: str, data: bytes, where: str, tmp_path: Path
) -> None:
    """What is not UTF-8, or a gzip that ends early, is told with its place."""
    (tmp_path / name).write_bytes(data)

    with pytest.raises(SourceInvalid) as caught:
        read(tmp_path / name)

    assert caught.value.code == "calibration.unreadable"
    assert where in caught.value.message


def test_a_long_text_comes_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces end after paragraphs and put together are the file."""
    monkeypatch.setattr(calibration_rows, "_PIECE_CHARS", 100)
    path = tmp_path / "x.txt"
    text = "\n\n".join(f"paragraph {i} " + "word " * 5 for i in range(40))
    path.write_text(text)

    pieces = read(path)

    assert "".join(pieces) == text
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= 200
    assert all(piece.startswith("\n\nparagraph") for piece in pieces[1:])


def test_text_without_spaces_still_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is nowhere to cut, nothing is lost."""
    monkeypatch.setattr(calibration_rows, "_PIECE_CHARS", 100)
    (tmp_path / "x.txt").write_text("x" * 950)

    assert "".join(read(tmp_path / "x.txt")) == "x" * 950


def test_reading_is_lazy(tmp_path: Path) -> None:
    """A row behind those that are taken is never looked at."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\nbroken')
    documents = read_documents(
        [(path, path.name), (tmp_path / "gone.txt", "g")], Tally()
    )

    assert next(documents) == "one"


def test_parquet_reads_only_the_columns_it_knows(tmp_path: Path) -> None:
    """Rows of a table; a null is empty; what holds no text is never decoded."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    table = pa.table({"picture": [b"x"] * 3, "text": ["one", None, "three"]})
    parquet.write_table(table, path)
    chats = tmp_path / "chats.parquet"
    rows = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
    parquet.write_table(pa.table({"messages": rows}), chats)

    assert read(path) == ["one", "three"]
    assert read(chats, render=tag) == ["<user:a>", "<user:b>"]


def test_parquet_without_text_names_its_columns(tmp_path: Path) -> None:
    """A table of other things says what it has."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"label": [1], "pixels": [2]}), tmp_path / "x.parquet")

    with pytest.raises(SourceInvalid) as caught:
        read(tmp_path / "x.parquet")

    assert caught.value.code == "calibration.row"
    assert "`label`, `pixels`" in caught.value.message


def test_parquet_is_read_or_explained(tmp_path: Path) -> None:
    """Without pyarrow the error names it; with pyarrow a broken file is an error."""
    (tmp_path / "x.parquet").write_bytes(b"not parquet")

    with pytest.raises(LmiBuildError) as caught:
        read(tmp_path / "x.parquet")

    assert caught.value.code in {"calibration.parquet", "calibration.unreadable"}
