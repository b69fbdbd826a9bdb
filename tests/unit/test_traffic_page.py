"""The page of a log: sound markup, every request in the heat map, nothing loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chromium import Browser, browser
from lmi_build.cli.main import run
from lmi_build.report.traffic_page import binned, place, render_traffic, step_of
from lmi_build.sizing.lengths import JointLengths
from lmi_build.traffic.propose import propose
from lmi_build.traffic.read import ReadOptions
from lmi_build.values.settings import Settings
from report_pages import Page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("vl_convert", reason="charts need lmi-build[report]")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages."""
    yield from browser(tmp_path_factory.mktemp("profile"))


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

    # Once for wide screens and once for phones.
    assert markup.count('stroke="var(--ground)"') == 2 * len(cells)
    assert sum(cells.values()) == len(pairs)
    assert "700" in said
    assert "9000" in said
    assert "http" not in markup.replace("http-equiv", "")
    assert markup == page_of(tmp_path, pairs)


def test_one_request_is_enough(tmp_path: Path) -> None:
    """A log of one empty request draws, and has no curve."""
    markup = page_of(tmp_path, [(0, 0)])

    assert markup.count('stroke="var(--ground)"') == 2
    assert markup.count("<figure>") == 1


def test_a_bound_lets_its_own_length_in() -> None:
    """A power of two is the end of its step; one token more is the next step."""
    for power in range(1, 20):
        assert place(1 << power) == step_of(1 << power) + 1
        assert step_of((1 << power) + 1) > step_of(1 << power)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
def test_the_page_can_be_read(
    tmp_path: Path,
    width: int,
    dark: bool,  # noqa: FBT001 - a parameter of the test
    chromium: Browser,
) -> None:
    """No complaint, nothing loaded, no text cut off, faint, or outside the window."""
    page = tmp_path / "page.html"
    pairs = [(n % 700 + 1, n % 90) for n in range(3000)] + [(90_000, 4000)]
    page.write_text(page_of(tmp_path, pairs), "utf-8")
    seen = chromium.look(page, width=width, dark=dark)

    assert seen.complaints == []
    assert seen.requests == [page.as_uri()]
    assert seen.outside == []
    assert seen.faint == []
    assert seen.overflow == 0
    assert "90000" in seen.said


@given(st.integers(1, 10**7))
def test_two_steps_for_each_doubling(length: int) -> None:
    assert step_of(2 * length) == step_of(length) + 2
    assert step_of(length + 1) >= step_of(length)


def test_the_command_writes_it(tmp_path: Path) -> None:
    log, page = tmp_path / "log.csv", tmp_path / "page.html"
    log.write_text("input_tokens,output_tokens\n5,6\n")

    assert run(["bounds", str(log), "--html", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
