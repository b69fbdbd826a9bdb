"""Predictions against what others measured and published."""

from __future__ import annotations

from pathlib import Path

import pytest

from published_sizes import Comparison, comparisons, document, markdown

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "sizing.md"


@pytest.fixture(scope="module")
def found() -> list[Comparison]:
    """Every published number with its prediction, computed once."""
    return comparisons()


def test_each_number_lies_in_its_interval_or_is_a_known_miss(
    found: list[Comparison],
) -> None:
    """A miss has its reason in the data; what stopped being one is taken out there."""
    assert [item for item in found if not item.holds and not item.miss] == []
    assert [item for item in found if item.holds and item.miss] == []


def test_there_are_enough_measurements_and_most_hold(found: list[Comparison]) -> None:
    """At least twelve runs have totals, and nineteen of twenty numbers are inside."""
    assert sum("total_gib" in run for run in document()["runs"]) >= 12
    assert sum(item.holds for item in found) * 20 >= 19 * len(found)


def test_an_interval_of_weights_is_narrow(found: list[Comparison]) -> None:
    """To say so much would be no feat: nine of ten are within 6 percent."""
    wide = [
        item.run
        for item in found
        if item.what == "weights" and item.predicted.high > 1.06 * item.predicted.low
    ]
    weights = sum(item.what == "weights" for item in found)

    assert len(wide) * 10 <= weights


def test_predicted_weights_are_near_even_where_they_miss(
    found: list[Comparison],
) -> None:
    """But for one early version that held weights twice, by less than 3 percent."""
    weights = [item for item in found if item.what == "weights"]
    far = [item.run for item in weights if abs(item.error) > 0.03]

    assert far == ["DeepSeek-Coder V2 Lite AWQ, vLLM 0.7, H100"]


def test_the_page_shows_this_table() -> None:
    """`python tests/published_sizes.py` writes what stands in the page."""
    assert markdown() in PAGE.read_text("utf-8")
