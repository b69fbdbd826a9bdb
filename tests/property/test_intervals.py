"""Confidence intervals: their quantiles, their coverage, their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.numerics.intervals import (
    mean_interval,
    share_interval,
    student_t,
    windows_to_settle,
)

# Two-sided 95%, from the tables of any textbook.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 15: 2.131, 30: 2.042}


@pytest.mark.parametrize(("degrees", "quantile"), TABLE.items())
def test_quantiles_are_the_tables(degrees: int, quantile: float) -> None:
    assert student_t(degrees) == pytest.approx(quantile, abs=6e-4)


def test_quantiles_fall_to_the_normal_one() -> None:
    """More windows are never worth less; in the end it is the normal distribution."""
    values = [student_t(degrees) for degrees in range(1, 200)]

    assert values == sorted(values, reverse=True)
    assert student_t(20_000) == pytest.approx(1.959964, abs=2e-4)
    with pytest.raises(ValueError, match="degrees"):
        student_t(0)


def test_eight_windows_cover_the_mean_as_often_as_promised() -> None:
    """
    Of 4000 samples of eight, 95% give an interval around the true mean.

    Three standard errors of that share are 1.0%.
    """
    random = np.random.default_rng(3)
    sample = random.normal(0.2, 0.05, size=(4000, 8))
    hits = 0
    for row in sample:
        interval = mean_interval(
            float(row.mean()), float(row.std(ddof=1)) / math.sqrt(8), 8
        )
        assert interval is not None
        hits += interval.low <= 0.2 <= interval.high

    assert hits / len(sample) == pytest.approx(0.95, abs=0.0105)


def test_shares_near_one_are_covered_as_often_as_promised() -> None:
    """Windows with their own share, 200 trials each: at least 93% are covered."""
    random = np.random.default_rng(5)
    hits = 0
    for _ in range(3000):
        chance = np.clip(random.normal(0.95, 0.02, size=8), 0, 1)
        shares = random.binomial(200, chance) / 200
        interval = share_interval(
            float(shares.mean()),
            float(shares.std(ddof=1)) / math.sqrt(8),
            num_windows=8,
            num_tokens=1600,
        )
        assert interval is not None
        hits += interval.low <= 0.95 <= interval.high

    assert hits / 3000 >= 0.93


@given(
    st.floats(0, 1),
    st.floats(0, 0.5),
    st.integers(2, 64),
    st.integers(1, 2048),
)
def test_share_intervals_hold_the_share(
    share: float, error: float, windows: int, length: int
) -> None:
    interval = share_interval(
        share, error, num_windows=windows, num_tokens=windows * length
    )

    assert interval is not None
    assert 0 <= interval.low <= share <= interval.high <= 1
    assert interval.low < interval.high


def test_one_window_has_no_interval() -> None:
    assert mean_interval(0.1, 0.0, 1) is None
    assert share_interval(0.9, 0.0, num_windows=1, num_tokens=512) is None


@given(st.integers(2, 40), st.floats(1e-4, 1), st.floats(1e-4, 1))
def test_settling_number_is_the_smallest_that_does(
    num: int, half: float, distance: float
) -> None:
    """At the number the interval ends before the bound; one below it does not."""
    most = 4000
    found = windows_to_settle(num, half=half, distance=distance, most=most)
    spread = half / student_t(num - 1) * math.sqrt(num)

    def width(count: int) -> float:
        return spread * student_t(count - 1) / math.sqrt(count)

    slack = 1e-9
    if found <= most:
        assert width(found) <= distance * (1 + slack)
    if found > 2:
        assert width(min(found, most + 1) - 1) >= distance * (1 - slack)
