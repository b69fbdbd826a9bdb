"""Two numbers between which the truth lies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """
    Two numbers between which the truth lies.

    Args:
        low: No less than this.
        high: No more than this.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"{self.low} to {self.high} is no range")

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, high=self.high + other.high)

    def times(self, factor: float) -> Range:
        """Both ends times a number of at least 0."""
        return Range(low=self.low * factor, high=self.high * factor)

    def by(self, other: Range) -> Range:
        """Low by low and high by high, of two that do not hang on each other."""
        return Range(low=self.low * other.low, high=self.high * other.high)

    def over(self, amount: float) -> Range:
        """An amount by both ends, such as requests by the seconds they take."""
        return Range(low=amount / self.high, high=amount / self.low)
