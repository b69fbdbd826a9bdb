"""Laws of calibration text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lmi_build.errors import LmiBuildError, SourceInvalid, Unsupported
from lmi_build.quantizers.calibration import (
    PYTHON_DOCS,
    builtin_texts,
    calibration_digest,
    calibration_path,
    held_out_text,
    load_tokenizer,
    pack,
    read_texts,
)
from lmi_build.values.recipe import CalibrationSpec

if TYPE_CHECKING:
    from pathlib import Path


def spec(path: Path | str) -> CalibrationSpec:
    return CalibrationSpec(dataset=str(path))


def test_held_out_text_is_never_calibrated_on() -> None:
    """The two halves of the built-in text share no document."""
    calibration = set(builtin_texts(held_out=False))
    held_out = set(builtin_texts(held_out=True))

    assert calibration
    assert held_out
    assert not calibration & held_out
    assert all(text in held_out_text() for text in held_out)


def test_digest_names_content_not_place(tmp_path: Path) -> None:
    """Two files with the same bytes have one digest; another byte, another digest."""
    for name, text in (("a.txt", "same"), ("b.txt", "same"), ("c.txt", "other")):
        (tmp_path / name).write_text(text)
    digests = [calibration_digest(spec(tmp_path / f"{x}.txt")) for x in "abc"]

    assert digests[0] == digests[1] != digests[2]
    assert calibration_digest(CalibrationSpec()) not in digests


@pytest.mark.parametrize("name", ["hub:a/b", "s3://b/k", "builtin:x", "notes.csv"])
def test_unknown_kinds_are_refused(name: str) -> None:
    """What cannot be read is refused before any work, with the kinds that can."""
    with pytest.raises(Unsupported) as caught:
        calibration_path(spec(name))

    assert caught.value.code == "calibration.dataset"
    assert ".jsonl" in caught.value.hints[0]


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A path that does not exist is the user's error."""
    with pytest.raises(SourceInvalid) as caught:
        calibration_digest(spec(tmp_path / "gone.txt"))

    assert caught.value.code == "calibration.unreadable"


ROWS = [
    {"text": "one"},
    {"prompt": "two"},
    {"messages": [{"role": "user", "content": "three"}]},
]


def test_rows_give_their_text(tmp_path: Path) -> None:
    """`text`, `prompt` and `messages` are read in order; blank lines are skipped."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS))

    assert read_texts(path.name, path) == ["one", "two", "three"]


def test_a_template_wraps_rows(tmp_path: Path) -> None:
    """With a chat template, plain text becomes one user message."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))

    got = read_texts(
        path.name, path, template=lambda m: f"<{m[0]['role']}:{m[0]['content']}>"
    )

    assert got == ["<user:one>", "<user:two>", "<user:three>"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "calibration.empty"),
        ('{"text": " "}', "calibration.empty"),
        ("{", "calibration.row"),
        ("[1]", "calibration.row"),
        ('{"label": "x"}', "calibration.row"),
        ('{"messages": [{"role": "user"}]}', "calibration.row"),
    ],
)
def test_bad_rows_are_named(text: str, code: str, tmp_path: Path) -> None:
    """A row that cannot be used is named by file and line."""
    path = tmp_path / "rows.jsonl"
    path.write_text(text)

    with pytest.raises(SourceInvalid) as caught:
        read_texts(path.name, path)

    assert caught.value.code == code
    assert "rows.jsonl" in caught.value.message


def test_binary_text_is_refused(tmp_path: Path) -> None:
    """A file that is not UTF-8 is not text."""
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(SourceInvalid) as caught:
        read_texts("x.txt", tmp_path / "x.txt")

    assert caught.value.code == "calibration.unreadable"


def test_parquet_is_read_or_explained(tmp_path: Path) -> None:
    """Without pyarrow the error names it; with pyarrow a broken file is an error."""
    (tmp_path / "x.parquet").write_bytes(b"not parquet")

    with pytest.raises(LmiBuildError) as caught:
        read_texts("x.parquet", tmp_path / "x.parquet")

    assert caught.value.code in {"calibration.parquet", "calibration.unreadable"}


def test_windows_are_whole_pieces_of_the_text() -> None:
    """Windows do not overlap, keep the order of the text and repeat with the seed."""
    tokens = list(range(1000))
    windows = pack(tokens, num_samples=5, max_seq_len=64, seed=1)

    assert [len(window) for window in windows] == [64] * 5
    assert all(w == list(range(w[0], w[0] + 64)) for w in windows)
    assert all(w[0] % 64 == 0 for w in windows)
    assert windows == sorted(windows)
    assert windows == pack(tokens, num_samples=5, max_seq_len=64, seed=1)
    assert windows != pack(tokens, num_samples=5, max_seq_len=64, seed=2)


def test_too_little_text_says_both_numbers() -> None:
    """Needed and present tokens are in the message, and what would fit."""
    with pytest.raises(SourceInvalid) as caught:
        pack(list(range(100)), num_samples=4, max_seq_len=32, seed=0)

    assert caught.value.code == "calibration.too-short"
    assert "128 tokens, the data set has 100" in caught.value.message
    assert caught.value.hints[0].endswith("to 3")
    assert caught.value.hints[1].endswith("to 25")


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    """No `tokenizer.json`, no calibration."""
    with pytest.raises(SourceInvalid) as caught:
        load_tokenizer(tmp_path)

    assert caught.value.code == "calibration.tokenizer"


def test_location_stays_out_of_the_digest(tmp_path: Path) -> None:
    """Numbers of the draw do not enter the digest of the text."""
    assert calibration_digest(CalibrationSpec()) == calibration_digest(
        replace(CalibrationSpec(), num_samples=3, seed=9)
    )
    assert calibration_path(CalibrationSpec(dataset=PYTHON_DOCS)) is None
