"""Logs of every form, good and bad, give the same counts or a clear error."""

from __future__ import annotations

import gzip
import io
import json
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.catalog.log_columns import column_names, find_column
from lmi_build.errors import LmiBuildError, SourceInvalid
from lmi_build.sizing.lengths import JointLengths
from lmi_build.traffic.faults import length_or_fault
from lmi_build.traffic.propose import propose
from lmi_build.traffic.read import ReadOptions, read_log
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.traffic.tally import Tally

PAIRS = [(i % 50, i % 7) for i in range(1, 3001)]
SECRET = "a very private prompt"


def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "store", offline=True)


def read(path: Path | str, **how: Any) -> Tally:
    from pathlib import Path as Where

    return read_log(str(path), ReadOptions(**how), Settings(cache_dir=Where("store")))


def jsonl(pairs: list[tuple[int, int]]) -> bytes:
    rows = (
        {
            "ts": 1714557600 + n // 10,
            "usage": {"prompt_tokens": i, "completion_tokens": o},
        }
        for n, (i, o) in enumerate(pairs)
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_log(pairs: list[tuple[int, int]], *, mark: str = ",", quote: str = "") -> bytes:
    lines = [mark.join(["Timestamp", "Request tokens", "Model", "Response tokens"])]
    lines += [
        mark.join(["2024-05-01 10:00:00", str(i), f"{quote}a b{quote}", str(o)])
        for i, o in pairs
    ]
    return ("\r\n".join(lines) + "\r\n").encode()


FORMS = {
    "jsonl": jsonl(PAIRS),
    "no-end": jsonl(PAIRS)[:-1],
    "bom": b"\xef\xbb\xbf" + jsonl(PAIRS),
    "blank": b"\n\n" + jsonl(PAIRS).replace(b"\n", b"\n\n"),
    "csv": csv_log(PAIRS),
    "tsv": csv_log(PAIRS, mark="\t"),
    "quoted": csv_log(PAIRS, quote='"'),
    "lines-in-fields": csv_log(PAIRS, quote='"').replace(b"a b", b"a\nb"),
    "gzip": gzip.compress(jsonl(PAIRS)),
    "members": gzip.compress(jsonl(PAIRS[:99])) + gzip.compress(jsonl(PAIRS[99:])),
    "padded": gzip.compress(csv_log(PAIRS)) + bytes(512),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_counts(form: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(FORMS[form])

    tally = read(log, timed=True)

    assert tally.joint == JointLengths(PAIRS)
    assert tally.faults.total == 0
    assert tally.arrivals.total == len(PAIRS)
    assert min(tally.arrivals)[0] >= 1714557600


def test_standard_input_is_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.TextIOWrapper(io.BytesIO(FORMS["gzip"]))
    monkeypatch.setattr(sys, "stdin", pipe)

    assert read("-").joint == JointLengths(PAIRS)


def test_parquet_gives_the_same_counts(tmp_path: Path) -> None:
    """Nested columns, and gaps with the rows that have them."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    usage: list[dict[str, int | None]]
    usage = [{"prompt_tokens": i, "completion_tokens": o} for i, o in PAIRS]
    usage[6] = {"prompt_tokens": None, "completion_tokens": 1}
    parquet.write_table(
        pa.table(
            {"usage": usage, "text": [SECRET] * len(PAIRS), "ts": range(len(PAIRS))}
        ),
        tmp_path / "log",
    )
    expected = JointLengths(PAIRS[:6] + PAIRS[7:])

    for timed in (False, True):
        tally = read(tmp_path / "log", timed=timed)
        assert tally.joint == expected
        assert tally.faults.counts == {"missing": 1}
        assert tally.faults.places("missing") == (7,)
        assert tally.unit == "row"


def test_parquet_has_columns_of_many_names_and_types(tmp_path: Path) -> None:
    """Whatever they are called; decimals and codes are read, a list is one column."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pairs = [(i + 1, o) for i, o in PAIRS]
    inputs, outputs = [i for i, _ in pairs], [o for _, o in pairs]
    rows = {"i": inputs, "o": outputs}
    tables: list[tuple[dict[str, Any], tuple[str, str]]] = [
        ({"n_in": inputs, "n_out": outputs}, ("n_in", "n_out")),
        ({"N In": inputs, "N-Out": outputs}, ("n_in", "n_out")),
        ({"a.b": inputs, "a.c": outputs}, ("a.b", "a.c")),
        (
            {"r": [{"u": {"p": i, "c": o}} for i, o in pairs]},
            ("r.u.p", "r.u.c"),
        ),
        (
            {name: [Decimal(x) for x in row] for name, row in rows.items()},
            ("i", "o"),
        ),
        (
            {name: pa.array(row).dictionary_encode() for name, row in rows.items()},
            ("i", "o"),
        ),
    ]

    for number, (columns, (input_name, output_name)) in enumerate(tables):
        path = tmp_path / f"{number}.parquet"
        parquet.write_table(pa.table(columns), path)
        tally = read(path, input_column=input_name, output_column=output_name)
        assert tally.joint == JointLengths(pairs), columns.keys()

    listed = {"ids": [[7] * i for i in inputs], "o": outputs}
    parquet.write_table(pa.table(listed), tmp_path / "list.parquet")
    with pytest.raises(SourceInvalid, match="not-a-number") as caught:
        read(tmp_path / "list.parquet", input_column="ids", output_column="o")
    assert caught.value.code == "traffic.too-many-bad"


def test_a_lone_column_is_told_without_its_name(tmp_path: Path) -> None:
    """It may be the first row of a log without a header, and so somebody's text."""
    (tmp_path / "log").write_text("secret\n1\n")

    with pytest.raises(SourceInvalid, match="none that looks like a name"):
        read(tmp_path / "log")


def test_faults_are_counted_and_located(tmp_path: Path) -> None:
    bad = {
        3: b'{"input_tokens": 5}',
        7: b'{"input_tokens": -5, "output_tokens": 1}',
        8: b'{"input_tokens": 12345678, "output_tokens": 1}',
        20: b'{"input_tokens": 1.5, "output_tokens": 1}',
        21: f'{{"prompt": "{SECRET}'.encode(),
        900: b'{"input_tokens": 1, "output_tokens": null}',
    }
    lines = [
        bad.get(n, b'{"input_tokens": 4, "output_tokens": 2}') for n in range(1, 1001)
    ]
    log = tmp_path / "log"
    log.write_bytes(b"\n".join(lines))

    faults = read(log).faults

    assert faults.counts == {
        "malformed": 1,
        "missing": 2,
        "negative": 1,
        "absurd": 1,
        "not-a-number": 1,
    }
    assert [faults.places(kind) for kind in faults.counts] == [
        (21,),
        (3, 900),
        (7,),
        (8,),
        (20,),
    ]


NO_COLUMN = "traffic.no-column"
ERRORS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "empty": (b"", {}, "traffic.empty"),
    "blank": (b"\n \n\n", {}, "traffic.empty"),
    "header": (b"input_tokens,output_tokens\n", {}, "traffic.empty"),
    "array": (b"[\n{}\n]\n", {}, "traffic.not-a-log"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\n", {}, "traffic.not-a-log"),
    "wide": (csv_log(PAIRS).decode().encode("utf-16"), {}, "traffic.not-a-log"),
    "column": (
        jsonl(PAIRS),
        {"input_column": "usage.prompt_token"},
        "traffic.no-column",
    ),
    "names": (b'{"a": 1, "b": 2}\n', {}, NO_COLUMN),
    "times": (csv_log(PAIRS).replace(b"Timestamp", b"x"), {"timed": True}, NO_COLUMN),
    "text": (SECRET.encode() * 9 + b"\n", {}, NO_COLUMN),
    "cut": (gzip.compress(jsonl(PAIRS))[:-9], {}, "traffic.broken-gzip"),
    "flipped": (
        gzip.compress(jsonl(PAIRS))[:900] + b"\xff" * 64,
        {},
        "traffic.broken-gzip",
    ),
    "bad": (
        jsonl(PAIRS[:97]) + f'{{"x": "{SECRET}"}}\n'.encode() * 3,
        {},
        "traffic.too-many-bad",
    ),
    "parquet": (b"PAR1 and then nothing", {}, ""),
    "tokenizer": (jsonl(PAIRS), {"tokenizer": "."}, ""),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_read_is_explained(name: str, tmp_path: Path) -> None:
    """A code of this room, a hint, and nothing of the text."""
    from pathlib import Path as Where

    data, how, code = ERRORS[name]
    log = tmp_path / "log"
    log.write_bytes(data)
    how = {k: Where(v) if k == "tokenizer" else v for k, v in how.items()}

    with pytest.raises(LmiBuildError) as caught:
        read(log, **how)

    assert caught.value.code == code or (not code and caught.value.code in ROOM)
    assert caught.value.hints
    assert SECRET not in str(caught.value)


# With and without the optional packages.
ROOM = {
    "traffic.parquet",
    "traffic.unreadable",
    "traffic.tokenizers",
    "traffic.tokenizer",
}


@pytest.mark.parametrize(
    ("rows", "hints"),
    [
        (["7", "7", "-1"], ["look", "or allow more: `--max-bad-share 0.34`"]),
        (["7", '"words"'], ["look", "lengths of texts", "or allow more"]),
        (["-1"], ["look"]),
    ],
)
def test_a_share_that_would_do_is_named(
    tmp_path: Path, rows: list[str], hints: list[str]
) -> None:
    """None where no row is left, and a tokenizer only where there may be texts."""
    log = tmp_path / "log"
    lines = (f'{{"input_tokens": {row}, "output_tokens": 2}}\n' for row in rows)
    log.write_text("".join(lines))

    with pytest.raises(LmiBuildError) as caught:
        read(log)
    assert caught.value.code == "traffic.too-many-bad"
    found = caught.value.hints
    assert all(a.startswith(b) for a, b in zip(found, hints, strict=True)), found


def test_a_near_name_is_suggested(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(jsonl(PAIRS))

    with pytest.raises(LmiBuildError) as caught:
        read(log, input_column="usage.prompt_token")

    assert "`usage.prompt_tokens`" in caught.value.hints[0]


@pytest.mark.parametrize("path", [".", "absent.jsonl"])
def test_no_file_is_said(path: str) -> None:
    with pytest.raises(LmiBuildError) as caught:
        read(path)

    assert caught.value.code == "traffic.unreadable"


def test_texts_are_counted_in_tokens(tmp_path: Path) -> None:
    """Texts and chats; what is neither is a fault."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "a": 1, "b": 2}
    model = tokenizers.models.WordLevel(words, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows: list[dict[str, Any]] = [
        {"prompt": "a b a", "answer": "b"},
        {"prompt": [{"role": "user", "content": "a b"}], "answer": ""},
        {"prompt": "a \ud800 b", "answer": "b"},
        {"prompt": 7, "answer": "b"},
        {"prompt": None, "answer": "b"},
    ]
    log = tmp_path / "log"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))

    tally = read(
        log,
        input_column="prompt",
        output_column="answer",
        tokenizer=tmp_path,
        max_bad_share=0.5,
    )

    assert tally.joint == JointLengths([(3, 1), (2, 0), (3, 1)])
    assert tally.faults.counts == {"missing": 1, "not-a-text": 1}


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (5, 5),
        (5.0, 5),
        ("5", 5),
        (" 5.0 ", 5),
        (-0.0, 0),
        (9_999_999, 9_999_999),
        (10_000_000, "absurd"),
        ("1" * 39, "absurd"),
        ("1" * 41, "not-a-number"),
        (1e300, "absurd"),
        (float("inf"), "not-a-number"),
        (float("nan"), "missing"),
        ("NaN", "missing"),
        ("", "missing"),
        (None, "missing"),
        (True, "not-a-number"),
        ("1_0", "not-a-number"),
        ([5], "not-a-number"),
        ("-3", "negative"),
        (-0.5, "not-a-number"),
    ],
)
def test_lengths_and_faults(value: Any, length: int | str) -> None:
    assert length_or_fault(value) == length


def test_usual_names_are_found_as_the_log_spells_them() -> None:
    azure = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]

    assert find_column("input", azure) == "ContextTokens"
    assert find_column("output", azure) == "GeneratedTokens"
    assert find_column("arrival", azure) == "TIMESTAMP"
    assert not set(column_names("input")) & set(column_names("output"))


def test_batch_comes_from_times_of_arrival(tmp_path: Path) -> None:
    """Ten requests a second of three seconds each are thirty at once."""
    log = tmp_path / "log"
    log.write_bytes(jsonl(PAIRS))

    proposal = propose(
        str(log),
        settings=settings(tmp_path),
        options=ReadOptions(timed=True),
        request_seconds=3,
    )

    assert proposal.max_batch_size == 30
    assert proposal.bounds is not None
    assert proposal.bounds.max_batch_size == 30


def test_identifiers_are_no_times(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = "".join(f"{n * 7919},5,5\n" for n in range(40_000))
    log.write_text(f"time,input_tokens,output_tokens\n{rows}")

    with pytest.raises(LmiBuildError) as caught:
        read(log, timed=True)

    assert caught.value.code == "traffic.no-times"
