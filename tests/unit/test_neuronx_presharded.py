"""Which splits of heads can be loaded again, against what the real library did."""

from __future__ import annotations

import pytest

from lmi_build.backends.neuronx.heads import HeadTerms
from lmi_build.backends.neuronx.presharded import (
    loads_presharded,
    presharded_problems,
)

# Query heads, key heads, cores, mode asked for, and whether the source of
# transformers-neuronx 0.13 made the same graphs from the folder that it had saved.
SEEN = [
    (8, 4, 2, None, True),
    (8, 4, 8, None, True),
    (32, 8, 12, None, False),
    (32, 8, 24, None, True),
    (8, 4, 2, "replicated-heads", False),
    (32, 8, 8, "replicated-heads", True),
    (40, 40, 24, None, True),
    (40, 40, 12, None, True),
    (32, 8, 16, None, True),
    (8, 2, 6, None, True),
    (64, 8, 24, None, True),
    (32, 8, 10, None, True),
    (32, 8, 2, "shard-over-heads", True),
    (64, 8, 12, None, False),
    (28, 4, 8, None, True),
    (8, 4, 2, "all-gather-heads", True),
    (8, 4, 2, "shard-over-batch", True),
]


def terms_of(heads: int, kv_heads: int, cores: int, mode: str | None) -> HeadTerms:
    """Heads over cores, as the runs had them."""
    return HeadTerms(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=8,
        tensor_parallel_size=cores,
        row="0.13",
        requested=mode,
        batch_size=4,
        continuous=True,
    )


@pytest.mark.parametrize(("heads", "kv_heads", "cores", "mode", "loaded"), SEEN)
def test_the_rule_says_what_the_library_did(
    heads: int,
    kv_heads: int,
    cores: int,
    mode: str | None,
    loaded: bool,  # noqa: FBT001 - a column of the table
) -> None:
    terms = terms_of(heads, kv_heads, cores, mode)

    assert loads_presharded(terms) is loaded
    assert (list(presharded_problems(terms)) == []) is loaded


def test_the_hint_leads_out() -> None:
    """The sizes that it names have no problem of this kind."""
    (problem,) = presharded_problems(terms_of(32, 8, 12, None))

    assert "`tensor_parallel_size: 8 or 10`" in problem.hint
    for cores in (8, 10):
        assert loads_presharded(terms_of(32, 8, cores, None))


def test_a_mode_asked_for_is_removed_first() -> None:
    (problem,) = presharded_problems(terms_of(8, 4, 2, "replicated-heads"))

    assert "remove `group_query_attention`" in problem.hint


def test_sharding_over_the_sequence_is_refused() -> None:
    problems = presharded_problems(terms_of(8, 4, 8, None), shard_over_sequence=True)

    assert [x.code for x in problems] == ["neuronx.presharded-sequence"]
