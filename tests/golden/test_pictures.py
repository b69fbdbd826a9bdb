"""The pictures of the documentation are those that the code draws."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("vl_convert", reason="charts need lmi-build[report]")

import gen_pictures  # after the check: it draws

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    """Every picture, drawn now."""
    return dict(gen_pictures.pictures())


def test_pictures_are_current(drawn: dict[str, str]) -> None:
    """`scripts/gen_pictures.py` would change nothing."""
    stored = {
        path.name: path.read_text("utf-8")
        for path in gen_pictures.PICTURES.glob("*.svg")
    }

    assert stored == drawn


def test_pictures_are_small_and_load_nothing(drawn: dict[str, str]) -> None:
    for name, svg in drawn.items():
        text = svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert len(svg) < 60_000, name
        assert not re.search(r"https?:|<script|@import|url\(|<image", text), name


def test_every_picture_is_shown_with_words(drawn: dict[str, str]) -> None:
    """Each stands in a page once, with a text for those who do not see it."""
    pages = "\n".join(page.read_text("utf-8") for page in DOCS.glob("concepts/*.md"))
    shown = re.findall(r"!\[([^\]]+)\]\(pictures/([\w-]+\.svg)\)", pages)

    assert sorted(name for _, name in shown) == sorted(drawn)
    assert all(len(words.split()) > 4 for words, _ in shown)
