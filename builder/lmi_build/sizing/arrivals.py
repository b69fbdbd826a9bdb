"""
Requests counted by the second of their arrival.

An hour with traffic takes 14 kB however many requests it has, a year 126 MB.
"""

from __future__ import annotations

import math
from array import array
from fractions import Fraction
from heapq import merge
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HOUR = 3600
# Two years of hours with traffic, 240 MB; what has more of them is no time.
MOST_HOURS = 1 << 14


class Arrivals:
    """
    Counts of requests, one for each second.

    Two of them are equal when every second has as many requests.
    """

    __slots__ = ("_hours", "total")

    def __init__(self, seconds: Iterable[tuple[int, int]] = ()) -> None:
        self._hours: dict[int, array[int]] = {}
        self.total = 0
        for second, count in seconds:
            self.add(second, count)

    def add(self, second: int, count: int = 1) -> None:
        """
        Count requests of one second.

        Raises:
            ValueError: More than `MOST_HOURS` different hours.
            OverflowError: More than 4 billion in one second.
        """
        hour, at = divmod(second, _HOUR)
        if hour not in self._hours:
            if len(self._hours) == MOST_HOURS:
                raise ValueError(f"more than {MOST_HOURS} hours")
            zeros = array("I")
            self._hours[hour] = array("I", bytes(_HOUR * zeros.itemsize))
        self._hours[hour][at] += count
        self.total += count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for hour in sorted(self._hours):
            for at, count in enumerate(self._hours[hour], hour * _HOUR):
                if count:
                    yield at, count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Arrivals):
            return NotImplemented
        return self._hours == other._hours

    __hash__ = None  # type: ignore[assignment]


def in_flight(arrivals: Arrivals, request_seconds: int, percent: float) -> int:
    """
    Requests under way at once, when each takes a given time.

    Args:
        arrivals: At least one request.
        request_seconds: How long one request takes, at least 1.
        percent: How much of the time this is enough for, over the log's span.

    Returns:
        The percentile over the seconds from the first arrival to the last end.
    """
    ends = ((second + request_seconds, -count) for second, count in arrivals)
    seconds: dict[int, int] = {}
    level, before = 0, None
    for second, change in merge(arrivals, ends):
        if before is not None:
            seconds[level] = seconds.get(level, 0) + second - before
        level, before = level + change, second
    rank = max(1, math.ceil(Fraction(str(percent)) * sum(seconds.values()) / 100))
    seen = 0
    for found in sorted(seconds):
        seen += seconds[found]
        if seen >= rank:
            return found
    raise ValueError("no arrivals")
