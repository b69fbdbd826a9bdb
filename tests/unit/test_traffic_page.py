"""The page of a log: sound markup, every request in the heat map, nothing loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from lmi_build.cli.main import run
from lmi_build.report.traffic_page import binned, render_traffic, step_of
from lmi_build.sizing.lengths import JointLengths
from lmi_build.traffic.propose import propose
from lmi_build.traffic.read import ReadOptions
from lmi_build.values.settings import Settings
from report_pages import Page

if TYPE_CHECKING:
    from pathlib import Path


def page_of(folder: Path, pairs: list[tuple[int, int]]) -> str:
    log = folder / "log.csv"
    rows = "".join(f"{i},{o}\n" for i, o in pairs)
    log.write_text(f"input_tokens,output_tokens\n{rows}")
    settings = Settings(cache_dir=folder / "store")
    found = propose(str(log), settings=settings, options=ReadOptions(), concurrency=4)
    return render_traffic(found)


def test_the_page_is_sound_and_says_the_bounds(tmp_path: Path) -> None:
    pairs = [(n % 700 + 1, n % 90) for n in range(3000)] + [(9000, 4000)]
    markup = page_of(tmp_path, pairs)
    page = Page(markup)
    said = " ".join(page.text)
    cells = binned(JointLengths(pairs))

    assert page.tags.count("rect") == len(cells)
    assert sum(cells.values()) == len(pairs)
    assert "700" in said
    assert "9000" in said
    assert "http" not in markup.replace("http-equiv", "")


def test_one_request_is_enough(tmp_path: Path) -> None:
    """A log of one empty request draws, and has no curve."""
    markup = page_of(tmp_path, [(0, 0)])

    assert markup.count("<rect") == 1
    assert "<path" not in markup


@given(st.integers(1, 10**7))
def test_two_steps_for_each_doubling(length: int) -> None:
    assert step_of(2 * length) == step_of(length) + 2
    assert step_of(length + 1) >= step_of(length)


def test_the_command_writes_it(tmp_path: Path) -> None:
    log, page = tmp_path / "log.csv", tmp_path / "page.html"
    log.write_text("input_tokens,output_tokens\n5,6\n")

    assert run(["bounds", str(log), "--html", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
