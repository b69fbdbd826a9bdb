"""The page of an advice: whole, safe, stable, and with every finding in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromium import Browser, browser
from lmi_build.advice.advisor import advise
from lmi_build.advice.question import Question
from lmi_build.cli.main import run
from lmi_build.report.advice_page import render_advice
from report_pages import Page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOME = Question(family="llama", device="gpu", traffic="even", spread=4.5, concurrency=8)
NOBODY = Question(family="t5", features=("lora",), life="maintained")


@pytest.mark.parametrize("question", [Question(), SOME, NOBODY])
def test_the_page_says_all_that_the_answer_says(question: Question) -> None:
    """Every row, every finding with its reason, its source and its date."""
    answer = advise(question)
    page = Page(render_advice(answer))
    said = "".join(page.text)

    assert page.headings[0] == "h1"
    for verdict in answer.verdicts:
        assert verdict.option.system.title in said
        for _, finding in verdict.removed or verdict.points:
            assert finding.reason.replace("`", "") in said
            assert f"{finding.source.text}, {finding.source.date}" in said
    for relaxation in answer.relaxations:
        assert relaxation.winner in said


def test_the_same_answer_gives_the_same_bytes() -> None:
    assert render_advice(advise(SOME)) == render_advice(advise(SOME))


@settings(max_examples=30, deadline=None)
@given(word=st.text(st.characters(), max_size=30))
def test_words_cannot_leave_their_place(word: str) -> None:
    """Whatever a family is called, the page parses, with no tag of its own."""
    page = render_advice(advise(Question(family=word or "x", goal=word)))
    read = Page(page)

    assert {"script", "link", "img", "iframe"}.isdisjoint(read.tags)
    page.encode()


def test_nothing_comes_from_elsewhere() -> None:
    page = render_advice(advise(SOME))

    assert not re.search(r"https?:|@import|url\(|<script|<link|<img", page)
    assert "default-src 'none'" in page


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all pages."""
    yield from browser(tmp_path_factory.mktemp("profile"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("question", [SOME, NOBODY], ids=["some", "nobody"])
def test_the_page_can_be_read(
    tmp_path: Path,
    question: Question,
    width: int,
    dark: bool,  # noqa: FBT001 - a parameter of the test
    chromium: Browser,
) -> None:
    """No complaint, nothing loaded, no text faint or outside the window."""
    page = tmp_path / "page.html"
    page.write_text(render_advice(advise(question)), "utf-8")
    seen = chromium.look(page, width=width, dark=dark)

    assert seen.complaints == []
    assert seen.requests == [page.as_uri()]
    assert seen.outside == []
    assert seen.faint == []
    assert seen.overflow == 0
    assert "Serving" in seen.said


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    out = tmp_path / "advice.html"

    assert run(["advise", "--model", "t5", "--html", str(out), "--quiet"]) == 0
    assert "Serving t5" in "".join(Page(out.read_text("utf-8")).text)
    assert run(["advise", "--model", "t5", "--html", str(tmp_path)]) == 2
