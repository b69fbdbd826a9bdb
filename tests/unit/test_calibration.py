"""Laws of calibration text: what is held out, what enters a key."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from calibration_data import bring, pinned, stage_job
from lmi_build.errors import LmiBuildError, SourceInvalid, Unsupported
from lmi_build.events import ignore
from lmi_build.quantizers.calibration import (
    builtin_texts,
    calibration_digest,
    calibration_distributions,
    calibration_params,
    calibration_settings,
    held_out_text,
    load_tokenizer,
)
from lmi_build.sources.dataset import resolve_dataset
from lmi_build.sources.dataset_fetch import run
from lmi_build.toolchains.doctor import _parquet
from lmi_build.toolchains.versions import missing_blocker
from lmi_build.values.dataset import data_format, data_suffix, parse_dataset
from lmi_build.values.recipe import CalibrationSpec
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
    digests = []
    for name, text in (("a.txt", "same"), ("b.txt", "same"), ("c.txt", "other")):
        (tmp_path / name).write_text(text)
        spec = pinned(CalibrationSpec(dataset=f"./{name}"), tmp_path)
        digests.append(calibration_digest(spec))
        assert str(tmp_path) not in json.dumps(calibration_params(spec))
        assert calibration_settings(spec) == {"calibration_names": [name]}

    assert digests[0] == digests[1] != digests[2]
    assert calibration_digest(CalibrationSpec()) not in digests


def test_the_draw_stays_out_of_the_digest() -> None:
    """Numbers of the draw do not enter the digest of the text, only the parameters."""
    other = replace(CalibrationSpec(), num_samples=3, seed=9)

    assert calibration_digest(CalibrationSpec()) == calibration_digest(other)
    assert calibration_params(CalibrationSpec()) != calibration_params(other)
    assert calibration_settings(CalibrationSpec()) == {}


def test_what_is_not_resolved_has_no_digest() -> None:
    """Asking too early is a mistake of ours."""
    with pytest.raises(ValueError, match="not resolved"):
        calibration_digest(CalibrationSpec(dataset="./rows.jsonl"))


@pytest.mark.parametrize(
    "name", ["hub:alone", "builtin:x", "notes.xlsx", "ftp://x/y.txt"]
)
def test_unknown_kinds_are_refused(name: str, tmp_path: Path) -> None:
    """What cannot be read is refused before any work, with the kinds that can."""
    with pytest.raises(Unsupported) as caught:
        pinned(CalibrationSpec(dataset=name), tmp_path)

    assert caught.value.code == "calibration.dataset"
    assert caught.value.hints


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A path that does not exist is the user's error."""
    with pytest.raises(SourceInvalid) as caught:
        pinned(CalibrationSpec(dataset="gone.txt"), tmp_path)

    assert caught.value.code == "calibration.unreadable"
    assert "gone.txt" in caught.value.message


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    """A folder or a pipe is not opened; a pipe would never end."""
    make(tmp_path / "rows.jsonl")

    with pytest.raises(SourceInvalid) as caught:
        pinned(CalibrationSpec(dataset="rows.jsonl"), tmp_path)

    assert caught.value.code == "calibration.unreadable"
    assert "not a file" in caught.value.message


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    """What is calibrated on is what was planned; the message names the file."""
    path = tmp_path / "rows.txt"
    path.write_text("one")
    facts = pinned(CalibrationSpec(dataset="rows.txt"), tmp_path).facts
    assert facts is not None
    path.write_text("two")

    with pytest.raises(LmiBuildError) as caught:
        run(stage_job(facts, tmp_path), ignore)

    assert caught.value.code == "calibration.changed"
    assert "rows.txt" in caught.value.message


def test_a_file_is_brought_by_its_format(tmp_path: Path) -> None:
    """The result holds the bytes under a name that says nothing of the user's."""
    (tmp_path / "My Rows.JSONL").write_bytes(b'{"text": "x"}')
    facts = pinned(CalibrationSpec(dataset="./My Rows.JSONL"), tmp_path).facts
    assert facts is not None

    data = bring(facts, tmp_path)

    assert [path.name for path in data.iterdir()] == ["data.jsonl"]
    assert (data / "data.jsonl").read_bytes() == b'{"text": "x"}'


def test_packages_are_asked_for_before_any_work(tmp_path: Path) -> None:
    """Parquet needs pyarrow and a template needs transformers; the hint installs it."""
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    (tmp_path / "rows.csv").write_bytes(b"text")
    table = pinned(CalibrationSpec(dataset="rows.parquet"), tmp_path)
    plain = pinned(CalibrationSpec(dataset="rows.csv"), tmp_path)
    blocker = missing_blocker({"pyarrow": None})

    assert calibration_distributions(table) == ("pyarrow",)
    assert calibration_distributions(plain) == ()
    assert calibration_distributions(CalibrationSpec()) == ()
    chat = replace(plain, chat_template=True)
    assert calibration_distributions(chat) == ("jinja2", "transformers")
    assert blocker is not None
    assert "pip install 'lmi-build[parquet]'" in blocker.hint


def test_a_built_in_text_needs_no_resolving(tmp_path: Path) -> None:
    """It is at hand, offline as well."""
    settings = Settings(cache_dir=tmp_path, offline=True)

    assert resolve_dataset(CalibrationSpec(), settings=settings, base=tmp_path) is None


@pytest.mark.parametrize(
    ("text", "repo", "revision", "path"),
    [
        ("hub:a/b", "a/b", "main", ""),
        ("hub:a/b@v1.0", "a/b", "v1.0", ""),
        ("hub:a/b/data/x.jsonl", "a/b", "main", "data/x.jsonl"),
        (
            "hub:a/b@refs/convert/parquet/default",
            "a/b",
            "refs/convert/parquet",
            "default",
        ),
        ("hub:a/b@dev/data/train-*", "a/b", "dev", "data/train-*"),
        ("hub:a/b/data/", "a/b", "main", "data"),
    ],
)
def test_names_are_taken_apart(text: str, repo: str, revision: str, path: str) -> None:
    """Repository, revision, path."""
    found = parse_dataset(text)

    assert (found.kind, found.location) == ("hub", repo)
    assert (found.revision, found.path) == (revision, path)


@pytest.mark.parametrize(
    "text", ["hub:", "hub:a", "hub:a/b/../c", "hub:a/b//c", "hub:a/b@", "hub:a/b/c\\d"]
)
def test_names_that_are_none_are_refused(text: str) -> None:
    """The form is in the message."""
    with pytest.raises(ValueError, match="hub:owner/name"):
        parse_dataset(text)


@pytest.mark.parametrize(
    ("name", "kind", "suffix"),
    [
        ("a/b.JSONL", "jsonl", ".jsonl"),
        ("x.json.gz", "json", ".json.gz"),
        ("x.tar.gz", None, None),
        ("x.parquet.gz", None, None),
        ("notes.md", "text", ".md"),
        ("jsonl", None, None),
    ],
)
def test_formats_are_told_by_endings(
    name: str, kind: str | None, suffix: str | None
) -> None:
    """Case does not matter; a packed file is read as what it packs."""
    assert data_format(name) == kind
    if suffix is not None:
        assert data_suffix(name) == suffix


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    """No `tokenizer.json`, no calibration."""
    with pytest.raises(SourceInvalid) as caught:
        load_tokenizer(tmp_path)

    assert caught.value.code == "calibration.tokenizer"


def test_doctor_tries_the_reader_of_tables() -> None:
    """Works, seen by an import; or missing, with the command that brings it."""
    row = _parquet()

    assert row.works == (find_spec("pyarrow") is not None)
    assert row.works or "lmi-build[parquet]" in row.fix
