"""Drawing from a few sorted candidates is drawing from all of them sorted."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.package.handlers.generation import Sampler, read_parameters

SIZES = st.sampled_from([3, 300, 5000])


def draw_by_sorting_all(
    scores: np.ndarray[Any, Any], wanted: dict[str, Any], share: float
) -> int:
    """The definition, in float64, with every candidate sorted."""
    scaled = scores.astype(np.float64) / wanted["temperature"]
    order = sorted(range(len(scaled)), key=lambda place: (-scaled[place], place))
    if wanted["top_k"]:
        order = order[: wanted["top_k"]]
    weights = np.exp(scaled[order] - scaled[order[0]])
    cumulative = np.cumsum(weights / weights.sum())
    if wanted["top_p"] < 1.0:
        keep = int(np.searchsorted(cumulative, wanted["top_p"])) + 1
        order, cumulative = order[:keep], cumulative[:keep]
    place = int(np.searchsorted(cumulative, share * cumulative[-1], side="right"))
    return int(order[min(place, len(order) - 1)])


@settings(max_examples=300, deadline=None)
@given(
    size=SIZES,
    seed=st.integers(0, 2**32 - 1),
    # Wide, narrow, and rounded so that many scores are equal.
    spread=st.sampled_from([0.0, 0.5, 4.0]),
    digits=st.sampled_from([0, 1, 6]),
    wanted=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.3, 1.0, 3.0]),
            "top_k": st.sampled_from([0, 1, 40, 4999]),
            "top_p": st.sampled_from([0.1, 0.9, 1.0]),
        }
    ),
)
def test_draws_are_those_of_the_definition(
    size: int, seed: int, spread: float, digits: int, wanted: dict[str, Any]
) -> None:
    """Token by token, for one seed."""
    random = np.random.default_rng(seed)
    parameters = read_parameters({**wanted, "do_sample": True, "seed": seed}, 8)
    sampler = Sampler(parameters, [])
    shares = np.random.default_rng(seed)
    for _ in range(4):
        scores = (random.normal(size=size) * spread).round(digits).astype(np.float32)
        expected = draw_by_sorting_all(scores, wanted, shares.random())

        assert sampler.pick(scores)[0] == expected
