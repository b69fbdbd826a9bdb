"""
Confidence intervals for means over a handful of held-out windows.

A window's tokens depend on each other; its mean hardly depends on the next window's.
So the sample is the windows, not the tokens: N windows give N - 1 degrees of freedom,
and Student's t says how far the mean of so few may lie from the text's own.
A bootstrap over eight windows would look up to a quarter narrower than it should
(sqrt(7/8) * 1.96 / 2.36), which is the wrong way to err for a gate.

The interval speaks of text like the held-out text; it knows nothing of other text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

LEVEL = 0.95
# Halvings of (0, pi / 2): below the last bit of a float64.
_HALVINGS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """
    Where the true value lies, `LEVEL` of all times that this is asked.

    Args:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


@cache
def student_t(degrees: int, level: float = LEVEL) -> float:
    """
    Two-sided quantile of Student's t: P(|t| <= result) = level.

    Args:
        degrees: Degrees of freedom, at least 1.
        level: Between 0 and 1.

    Raises:
        ValueError: No degree of freedom is left.

    Source:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4:
        the distribution for whole degrees as a finite sum, here inverted by halving.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom leave nothing to estimate")
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _share_within(middle, degrees) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _share_within(theta: float, degrees: int) -> float:
    """P(|t| <= sqrt(degrees) tan(theta))."""
    cosine = math.cos(theta)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    # Odd: cos + 2/3 cos^3 + (2 4)/(3 5) cos^5 ...; even: 1 + 1/2 cos^2 + ...
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= power / (power + 1) * cosine * cosine
    total *= math.sin(theta)
    return (theta + total) * 2 / math.pi if odd else total


def mean_interval(mean: float, standard_error: float, num: int) -> Interval | None:
    """
    Where the mean of all windows lies, by `num` of them.

    Args:
        mean: Of the windows.
        standard_error: Of that mean.
        num: Windows.

    Returns:
        None for a single window, which says nothing about the spread.
    """
    if num < 2:  # noqa: PLR2004 - a spread needs two
        return None
    half = student_t(num - 1) * standard_error
    return Interval(low=mean - half, high=mean + half)


def share_interval(
    share: float, standard_error: float, *, num_windows: int, num_tokens: int
) -> Interval | None:
    """
    Where a share lies: Wilson's interval for as many trials as the spread is worth.

    The windows' spread says how many independent trials the tokens amount to,
    p (1 - p) / se^2. Unlike mean +- t se, the ends stay within 0 and 1, and a share
    of exactly 1 still has a lower end below it.

    Source:
        Franco, Little, Louis and Slud, Comparative study of confidence intervals for
        proportions in complex sample surveys, J. Survey Statistics and Methodology
        7 (2019), the Wilson interval with effective sample size.
    """
    if num_windows < 2:  # noqa: PLR2004 - a spread needs two
        return None
    trials = float(num_tokens)
    variance = standard_error**2
    if variance > 0:
        trials = min(trials, share * (1 - share) / variance)
    # A spread that is worth less than one trial a window is the noise of few windows.
    trials = max(trials, float(num_windows))
    t2 = student_t(num_windows - 1) ** 2 / trials
    middle = (share + t2 / 2) / (1 + t2)
    half = math.sqrt(t2 * share * (1 - share) + t2 * t2 / 4) / (1 + t2)
    # The formula's ends at 0 and 1 are exact, its floating point is not.
    return Interval(
        low=min(share, max(0.0, middle - half)),
        high=max(share, min(1.0, middle + half)),
    )


def windows_to_settle(num: int, *, half: float, distance: float, most: int) -> int:
    """
    How many windows of the same spread would tell a mean from a bound.

    Args:
        num: Windows now, at least 2.
        half: Half of the interval they give, on the side of the bound.
        distance: From the mean to the bound.
        most: Where to stop asking.

    Returns:
        The smallest number whose interval ends before the bound; `most + 1` when
        even `most` would not do.
    """
    now = student_t(num - 1) / math.sqrt(num)

    def settles(count: int) -> bool:
        return half * student_t(count - 1) / math.sqrt(count) / now <= distance

    if most < 2 or not settles(most):  # noqa: PLR2004 - a spread needs two
        return most + 1
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settles(middle) else (middle, high)
    return high
