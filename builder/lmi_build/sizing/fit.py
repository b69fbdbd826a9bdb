"""
Whether a model fits a device, and the largest bounds that do.

A verdict is an interval's: what takes at most less than there is fits, what takes at
least more cannot, and what lies between is unproven. Every line grows with every bound,
so the largest bound is found by halving, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.sizing.memory import memory_lines, total

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmi_build.catalog.runtimes import Interval, Runtime
    from lmi_build.digest import JSONValue
    from lmi_build.sizing.memory import MemoryLine, Subject
    from lmi_build.values.bounds import Bounds

FITS, CANNOT, UNPROVEN = "fits", "cannot fit", "unproven"
QUESTIONS = ("batch", "input", "output")
_FIELDS = {
    "batch": "max_batch_size",
    "input": "max_input_len",
    "output": "max_output_len",
}
# More requests at once than any server schedules.
MOST_REQUESTS = 1 << 20
# Where the search for the longest text ends if the model has no last position.
MOST_TOKENS = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """
    Where a model is to lie.

    Args:
        runtime: Who serves it.
        tp: Devices, or cores of them, that a layer is split over.
        pp: Stages that the layers are split over.
        capacity: Bytes of each that a process can have; None where nobody said.
    """

    runtime: Runtime
    tp: int
    capacity: Interval | None
    pp: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class FitReport:
    """
    What was found.

    Args:
        lines: What each device must have.
        capacity: What it has, or None.
        unknown: Why a fit is not proven though the numbers say so; mostly empty.
    """

    lines: tuple[MemoryLine, ...]
    capacity: Interval | None
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> Interval:
        """All lines."""
        return total(self.lines)

    @property
    def verdict(self) -> str:
        """`fits`, `cannot fit` or `unproven`."""
        need = self.total
        if self.capacity is None:
            return UNPROVEN
        if need.low > self.capacity.high:
            return CANNOT
        if need.high <= self.capacity.low and not self.unknown:
            return FITS
        return UNPROVEN

    @property
    def margin_bytes(self) -> tuple[int, int] | None:
        """What is left at worst and at best; negative where it is missing."""
        need = self.total
        if self.capacity is None:
            return None
        return self.capacity.low - need.high, self.capacity.high - need.low

    @property
    def binding(self) -> str:
        """Name of what takes most."""
        return max(
            self.lines, key=lambda line: (line.bytes.low, line.bytes.high, line.name)
        ).name

    def to_json(self) -> dict[str, JSONValue]:
        """The report as data."""
        worst, best = self.margin_bytes or (None, None)
        capacity = self.capacity
        return {
            "verdict": self.verdict,
            "lines": [line.to_json() for line in self.lines],
            "total_low_bytes": self.total.low,
            "total_high_bytes": self.total.high,
            "capacity_low_bytes": capacity.low if capacity else None,
            "capacity_high_bytes": capacity.high if capacity else None,
            "margin_worst_bytes": worst,
            "margin_best_bytes": best,
            "binding": self.binding,
            "unknown": list(self.unknown),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Largest:
    """
    The largest value of one bound, the others as they are.

    Args:
        question: One of `QUESTIONS`.
        certain: The largest that fits for certain; 0 where none does.
        possible: The largest that may fit.
        limit: The largest that was looked at, such as the model's positions.
    """

    question: str
    certain: int
    possible: int
    limit: int


def fit(subject: Subject, bounds: Bounds, place: Place) -> FitReport:
    """
    Hold a model against a device.

    Args:
        subject: The model.
        bounds: What is served.
        place: Where.
    """
    return FitReport(
        lines=memory_lines(subject, bounds, place.runtime, tp=place.tp, pp=place.pp),
        capacity=place.capacity,
        unknown=subject.unknown,
    )


def largest(question: str, subject: Subject, bounds: Bounds, place: Place) -> Largest:
    """
    The exact inverse of `fit` in one bound.

    Args:
        question: One of `QUESTIONS`.
        subject: The model.
        bounds: The other bounds; the one that is asked for does not matter.
        place: Where.

    Returns:
        Values at which it fits while one more does not, no more than the model's
        positions leave. A model with something unknown has them too: they are what
        the numbers say.

    Raises:
        ValueError: There is no such question, or nothing that it could fit.
    """

    def need(changed: Bounds) -> Interval:
        return fit(subject, changed, place).total

    positions = subject.geometry.max_tokens
    return largest_by(question, need, bounds, place, positions=positions)


def largest_by(
    question: str,
    need: Callable[[Bounds], Interval],
    bounds: Bounds,
    place: Place,
    *,
    positions: int,
) -> Largest:
    """
    The largest value of one bound by any count of memory that grows with it.

    Args:
        question: One of `QUESTIONS`.
        need: Bytes of a device for some bounds.
        bounds: The other bounds.
        place: Where.
        positions: Of the model.

    Raises:
        ValueError: There is no such question, or nothing that it could fit.
    """
    if question not in QUESTIONS:
        raise ValueError(f"`{question}` is none of {QUESTIONS}")
    capacity = place.capacity
    if capacity is None:
        raise ValueError("a place without a capacity has no largest bound")
    positions = min(positions, MOST_TOKENS)
    limit = {
        "batch": MOST_REQUESTS,
        "input": max(0, positions - bounds.max_output_len),
        "output": max(0, positions - bounds.max_input_len),
    }[question]

    def at(value: int) -> Interval:
        return need(replace(bounds, **{_FIELDS[question]: value}))

    return Largest(
        question=question,
        certain=_last(lambda value: at(value).high <= capacity.low, limit),
        possible=_last(lambda value: at(value).low <= capacity.high, limit),
        limit=limit,
    )


def _last(fits: Callable[[int], bool], limit: int) -> int:
    """The last of 1..limit that fits, as all before it do; 0 where 1 does not."""
    if limit < 1 or not fits(1):
        return 0
    good, bad = 1, 2
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
