"""
Bounds of an engine from the lengths of real requests, exactly.

Capacity is `max_input_len + max_output_len`: the tokens of key-value cache that one
request may fill. A request is rejected when its prompt or its answer is longer than
the bound. Among all pairs of bounds that reject at most the allowed requests, the
cheapest has the least capacity, and of those the shorter input.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.sizing.lengths import JointLengths

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 100.0)
# A padded batch runs until its longest request is done; from one half on it computes
# more padding than tokens. Eight is a small server's batch; larger ones pad more.
PADDED_BATCH = 8
EVEN_PADDING = 0.5
# Rejected shares of the curve; the wanted one is added.
CURVE = [
    "0",
    "1e-5",
    "1e-4",
    "5e-4",
    "1e-3",
    "2e-3",
    "5e-3",
    "0.01",
    "0.02",
    "0.05",
    "0.1",
    "0.2",
    "0.5",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthSummary:
    """
    One length over all requests.

    Args:
        mean: Tokens.
        cv: Standard deviation over mean; 0 when the mean is 0.
        percentiles: Percent to tokens: the least length that so many are at most.
    """

    mean: float
    cv: float
    percentiles: Mapping[float, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """
    What a log says about its requests.

    Args:
        requests: How many.
        input: Of the prompts.
        output: Of the answers.
        total: Of prompt and answer together.
        padding_share: Expected share of a padded batch of `PADDED_BATCH` requests
            drawn from this log that is padding: 1 - mean / E[longest].
    """

    requests: int
    input: LengthSummary
    output: LengthSummary
    total: LengthSummary
    padding_share: float

    @property
    def even(self) -> bool:
        """Whether less than half of a padded batch would be padding."""
        return self.padding_share < EVEN_PADDING


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """
    The cheapest pair of bounds for one allowed share.

    Args:
        target: Share of requests that may be rejected.
        max_input_len: Longest prompt, at least 1.
        max_output_len: Longest answer.
        rejected: Requests over one of the bounds.
        requests: All requests.
    """

    target: Fraction
    max_input_len: int
    max_output_len: int
    rejected: int
    requests: int

    @property
    def capacity(self) -> int:
        """Tokens of key-value cache that one request may fill."""
        return self.max_input_len + self.max_output_len

    @property
    def rejected_share(self) -> float:
        """Share of requests over one of the bounds."""
        return self.rejected / self.requests


def summarise(counts: Mapping[int, int]) -> LengthSummary:
    """
    Mean, spread and percentiles of lengths.

    Args:
        counts: Length to requests; at least one request.
    """
    requests = sum(counts.values())
    total = sum(length * n for length, n in counts.items())
    squares = sum(length * length * n for length, n in counts.items())
    # Integers to the last step: nothing cancels.
    spread = math.sqrt(requests * squares - total * total)
    ranks = {
        p: max(1, math.ceil(Fraction(str(p)) * requests / 100)) for p in PERCENTILES
    }
    found: dict[float, int] = {}
    seen = 0
    for length in sorted(counts):
        seen += counts[length]
        found |= {
            p: length for p, rank in ranks.items() if rank <= seen and p not in found
        }
    return LengthSummary(
        mean=total / requests,
        cv=spread / total if total else 0.0,
        percentiles={p: found[p] for p in PERCENTILES},
    )


def measure(joint: JointLengths) -> Measures:
    """
    The measures of a histogram.

    Raises:
        ValueError: It is empty.
    """
    if not joint.total:
        raise ValueError("no requests")
    inputs: dict[int, int] = {}
    outputs = joint.answers()
    totals: Counter[int] = Counter()
    for input_len, lengths, counts in joint.rows():
        if counts is None:
            inputs[input_len] = len(lengths)
            totals.update([input_len + length for length in lengths])
            continue
        inputs[input_len] = sum(counts)
        for length, count in zip(lengths, counts, strict=True):
            totals[input_len + length] += count
    total = summarise(totals)
    longest = expected_longest(totals, PADDED_BATCH)
    return Measures(
        requests=joint.total,
        input=summarise(inputs),
        output=summarise(outputs),
        total=total,
        padding_share=1.0 - total.mean / longest if longest else 0.0,
    )


def expected_longest(counts: Mapping[int, int], batch_size: int) -> float:
    """
    Expected longest of a batch drawn from these lengths, independently.

    Exact: the longest is at most x with probability F(x) to the power of the batch.
    """
    requests = sum(counts.values())
    expected, seen, before = 0.0, 0, 0.0
    for length in sorted(counts):
        seen += counts[length]
        below = (seen / requests) ** batch_size
        expected += length * (below - before)
        before = below
    return expected


def choose(joint: JointLengths, target: Fraction) -> Choice:
    """
    The cheapest pair of bounds that rejects at most a share of the requests.

    Args:
        joint: Lengths of at least one request.
        target: Share that may be rejected, from 0 to less than 1.

    Raises:
        ValueError: An empty histogram, or no such share.
    """
    return choose_all(joint, [target])[0]


def choose_all(joint: JointLengths, targets: Sequence[Fraction]) -> list[Choice]:
    """
    The cheapest pair for each of several shares, in one pass over the histogram.

    The longest accepted prompt goes down from the longest of all. The answer's bound
    that is still needed only rises on the way, so each target walks the answers once.

    Args:
        joint: Lengths of at least one request.
        targets: Shares that may be rejected.

    Raises:
        ValueError: An empty histogram, or no such share.
    """
    if not joint.total:
        raise ValueError("no requests")
    if any(not 0 <= target < 1 for target in targets):
        raise ValueError("a share that may be rejected is from 0 to less than 1")
    left = dict(joint.answers())
    outputs = sorted(left)
    walks = [_Walk(target, joint.total) for target in targets]
    remaining = joint.total
    for input_len, lengths, counts in joint.rows(descending=True):
        walking = [walk for walk in walks if walk.needed <= remaining]
        if not walking:
            break
        sums = None if counts is None else [0, *accumulate(counts)]
        for walk in walking:
            walk.consider(max(1, input_len), outputs, left)
            inside = bisect_right(lengths, walk.longest)
            walk.accepted -= inside if sums is None else sums[inside]
        if sums is None or counts is None:
            for length in lengths:
                left[length] -= 1
            remaining -= len(lengths)
            continue
        for length, count in zip(lengths, counts, strict=True):
            left[length] -= count
        remaining -= sums[-1]
    return [walk.choice(joint.total) for walk in walks]


class _Walk:
    """One target's way through the histogram."""

    def __init__(self, target: Fraction, requests: int) -> None:
        self.target = target
        self.needed = requests - math.floor(target * requests)
        self.accepted = 0
        self.index = 0  # answers before it are accepted
        self.longest = -1
        self.best: tuple[int, int, int, int] | None = None

    def consider(
        self, input_len: int, outputs: Sequence[int], left: Mapping[int, int]
    ) -> None:
        while self.accepted < self.needed:
            self.longest = outputs[self.index]
            self.accepted += left[self.longest]
            self.index += 1
        capacity = input_len + self.longest
        best = self.best
        if best is None or (capacity, input_len) < (best[0], best[1]):
            self.best = (capacity, input_len, self.longest, self.accepted)

    def choice(self, requests: int) -> Choice:
        assert self.best is not None  # noqa: S101 - the longest pair rejects nothing
        _, input_len, output_len, accepted = self.best
        return Choice(
            target=self.target,
            max_input_len=input_len,
            max_output_len=output_len,
            rejected=requests - accepted,
            requests=requests,
        )


def curve_targets(wanted: Fraction) -> list[Fraction]:
    """The shares of the curve, ascending, with the wanted one among them."""
    return sorted({wanted, *map(Fraction, CURVE)})
