"""Laws of the bounds that a log's lengths give."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.sizing.arrivals import Arrivals, in_flight
from lmi_build.sizing.lengths import LARGEST_LEN, JointLengths
from lmi_build.sizing.load import best_split, bounds_of
from lmi_build.sizing.traffic import choose, choose_all, expected_longest, measure

PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1)
SHARES = st.fractions(0, Fraction(39, 40), max_denominator=40)
WIDE = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, LARGEST_LEN) | st.integers(0, 99))
)


@given(PAIRS, SHARES)
def test_no_cheaper_pair_rejects_as_little(
    pairs: list[tuple[int, int]], share: Fraction
) -> None:
    """Every pair of bounds is tried: the choice is the first of those allowed."""
    found = choose(JointLengths(pairs), share)

    def rejected(input_len: int, output_len: int) -> int:
        return sum(i > input_len or o > output_len for i, o in pairs)

    allowed = [
        (input_len + output_len, input_len, output_len)
        for input_len, output_len in product(range(1, 10), range(10))
        if rejected(input_len, output_len) <= share * len(pairs)
    ]
    best = min(allowed)
    assert (found.capacity, found.max_input_len, found.max_output_len) == best
    assert found.rejected == rejected(best[1], best[2])
    assert found.rejected <= share * len(pairs)


@given(PAIRS, st.lists(SHARES, min_size=1, max_size=5))
def test_many_shares_are_chosen_as_one_by_one(
    pairs: list[tuple[int, int]], shares: list[Fraction]
) -> None:
    """The curve's single pass gives what single choices give."""
    joint = JointLengths(pairs)

    assert choose_all(joint, shares) == [choose(joint, share) for share in shares]


@given(PAIRS, SHARES, SHARES)
def test_a_larger_share_never_costs_more(
    pairs: list[tuple[int, int]], one: Fraction, other: Fraction
) -> None:
    few, many = choose_all(JointLengths(pairs), sorted([one, other]))

    assert many.capacity <= few.capacity


@given(WIDE, st.randoms())
def test_order_does_not_matter(pairs: list[tuple[int, int]], random: object) -> None:
    """Rows in any order give one histogram."""
    mixed = list(pairs)
    random.shuffle(mixed)  # type: ignore[attr-defined]

    assert JointLengths(pairs) == JointLengths(mixed)


@given(WIDE, WIDE)
def test_halves_merge_to_the_whole(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    merged = JointLengths(left)
    merged.merge(JointLengths(right))

    assert merged == JointLengths(left + right)
    assert merged.total == len(left) + len(right)


@given(WIDE, st.integers(0, 6), st.integers(0, LARGEST_LEN))
def test_rows_are_counted_sparse_and_dense(
    pairs: list[tuple[int, int]], input_len: int, output_len: int
) -> None:
    """However a row is kept, its cells are those of a plain counter."""
    many = pairs * 40 + [(3, output) for output in range(200)]
    joint = JointLengths(many)
    plain = Counter(many)

    assert list(joint.cells()) == [(i, o, n) for (i, o), n in sorted(plain.items())]
    assert joint.rejected(input_len, output_len) == sum(
        i > input_len or o > output_len for i, o in many
    )


def test_a_cell_holds_more_than_32_bits() -> None:
    """A dense row whose count grows past an entry of the array stays exact."""
    joint = JointLengths((1, output) for output in range(128))
    for _ in range(3):
        joint.add(1, 7, 1 << 31)

    assert {o: n for _, o, n in joint.cells()}[7] == 3 * (1 << 31) + 1
    assert joint.total == 3 * (1 << 31) + 128


@given(PAIRS)
def test_measures_are_those_of_numpy(pairs: list[tuple[int, int]]) -> None:
    """Means, deviations and percentiles against float64 over the raw rows."""
    found = measure(JointLengths(pairs))
    lengths = np.array(pairs, dtype=np.float64)
    columns = (lengths[:, 0], lengths[:, 1], lengths.sum(axis=1))
    for summary, column in zip(
        (found.input, found.output, found.total), columns, strict=True
    ):
        mean = column.mean()
        assert summary.mean == pytest.approx(mean, abs=1e-12)
        assert summary.cv == pytest.approx(column.std() / mean if mean else 0, abs=1e-9)
        for percent, value in summary.percentiles.items():
            assert value == np.percentile(column, percent, method="inverted_cdf")


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.integers(min_value=1, max_value=4),
)
def test_expected_longest_is_the_mean_over_all_batches(
    lengths: list[int], batch_size: int
) -> None:
    """Every batch with replacement is looked at."""
    batches = list(product(lengths, repeat=batch_size))
    mean = sum(max(batch) for batch in batches) / len(batches)

    assert expected_longest(Counter(lengths), batch_size) == pytest.approx(mean)


@given(PAIRS, SHARES)
def test_two_engines_accept_the_same_and_no_split_saves_more(
    pairs: list[tuple[int, int]], share: Fraction
) -> None:
    """Every split point is tried with the least bounds that accept the same rows."""
    joint = JointLengths(pairs)
    choice = choose(joint, share)
    kept = [
        (i, o)
        for i, o in pairs
        if i <= choice.max_input_len and o <= choice.max_output_len
    ]
    costs = {}
    for at in range(1, choice.max_input_len):
        short = [o for i, o in kept if i <= at]
        long = [o for i, o in kept if i > at]
        if short and long:
            reserved = len(short) * (at + max(short))
            reserved += len(long) * (choice.max_input_len + max(long))
            costs[at] = 1 - Fraction(reserved, len(kept) * choice.capacity)
    best = max(costs.values(), default=Fraction(0))
    found = best_split(joint, choice)

    assert (found is None) == (best <= 0)
    if found is not None:
        assert found.saved_share == pytest.approx(float(best))
        assert found.at == min(at for at, saved in costs.items() if saved == best)


@given(
    st.dictionaries(st.integers(3590, 3620), st.integers(1, 5), min_size=1),
    st.integers(1, 6),
    st.sampled_from([50.0, 99.0, 100.0]),
)
def test_in_flight_is_counted_second_by_second(
    arrivals: dict[int, int], seconds: int, percent: float
) -> None:
    first, last = min(arrivals), max(arrivals) + seconds
    levels = sorted(
        sum(n for start, n in arrivals.items() if start <= now < start + seconds)
        for now in range(first, last)
    )
    rank = max(1, math.ceil(Fraction(str(percent)) * len(levels) / 100))

    assert in_flight(Arrivals(arrivals.items()), seconds, percent) == levels[rank - 1]


@given(PAIRS, st.integers(1, 64))
def test_packed_tokens_hold_a_prompt_beside_the_others(
    pairs: list[tuple[int, int]], batch: int
) -> None:
    """One longest prompt and one token of each other request always fit."""
    joint = JointLengths(pairs)
    choice = choose(joint, Fraction(0))
    bounds = bounds_of(choice, measure(joint), batch)

    assert bounds is not None
    assert bounds.max_num_tokens is not None
    assert bounds.max_num_tokens >= choice.max_input_len + batch - 1


@given(WIDE)
def test_many_at_once_are_counted_as_one_by_one(pairs: list[tuple[int, int]]) -> None:
    many = pairs * 3 + [(4, output % 80) for output in range(300)]
    joint = JointLengths()
    joint.add_all([i for i, _ in many], [o for _, o in many])

    assert joint == JointLengths(many)
    assert joint.total == len(many)


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from([0, 1, 5, 900, LARGEST_LEN])),
        max_size=40,
    ),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
)
def test_what_is_kept_and_what_is_counted_are_the_same_requests(
    pairs: list[tuple[int, int]], sizes: list[int]
) -> None:
    """Whenever it is looked at what to count, and in whatever batches rows come."""
    joint, plain = JointLengths(), Counter[tuple[int, int]]()
    for size in sizes:
        batch = (pairs * size)[: 40 * size]
        joint.add_all([i for i, _ in batch], [o for _, o in batch])
        plain.update(batch)
        # Reading counts what is worth it; what follows is added to that.
        list(joint.rows())

    assert list(joint.cells()) == [(i, o, n) for (i, o), n in sorted(plain.items())]
    assert joint.total == sum(plain.values())
    descending = [(i, tuple(o)) for i, o, _ in joint.rows(descending=True)]
    assert descending[::-1] == [(i, tuple(o)) for i, o, _ in joint.rows()]


def test_a_count_grows_past_its_32_bits() -> None:
    """An array that is full becomes one of 64 bits, in whatever way a request came."""
    joint = JointLengths((1, output) for output in range(64))
    list(joint.rows())
    joint._counted[1][7] = (1 << 32) - 1
    joint.add_all([1] * 3, [7] * 3)
    joint.add(1, 7)

    assert {o: n for _, o, n in joint.cells()}[7] == (1 << 32) + 3


def test_a_request_costs_four_bytes_however_wide_the_lengths_are() -> None:
    """Random lengths to 131,072 and 8,192 tokens: nearly every pair is a new one."""
    import random

    draw = random.Random(3).randrange  # noqa: S311 - no secret
    joint = JointLengths()
    for _ in range(20):
        batch = [(draw(131072), draw(8192)) for _ in range(5000)]
        joint.add_all([i for i, _ in batch], [o for _, o in batch])
    arrays = [*joint._kept.values(), *joint._counted.values()]
    size = sum(found.itemsize * len(found) for found in arrays)

    assert size <= 4 * joint.total


@given(
    st.lists(
        st.tuples(
            st.integers(0, 300),
            st.sampled_from([0, 1, 65_535, 65_536, LARGEST_LEN]) | st.integers(0, 99),
        )
    )
)
def test_cells_are_the_counts_of_pairs(pairs: list[tuple[int, int]]) -> None:
    """Also where answers need more than the half of a code."""
    counted = sorted((*pair, count) for pair, count in Counter(pairs).items())

    assert list(JointLengths(pairs).cells()) == counted
