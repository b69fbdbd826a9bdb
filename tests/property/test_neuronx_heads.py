"""Laws of attention heads on cores: each gets whole heads, and no wish is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lmi_build.backends.neuronx.heads import (
    ALL_GATHER_HEADS,
    MODES,
    REPLICATED_HEADS,
    SHARD_OVER_BATCH,
    SHARD_OVER_HEADS,
    HeadTerms,
    effective_mode,
    explain_heads,
    head_problems,
    lay_out,
    padded_vocabulary,
)
from neuronx_sizes import head_terms_of

# (query heads, key heads, head size, cores) and what 0.11 and later make of them: mode,
# padded query heads, key heads, replication.
KNOWN = {
    "Llama 3.1 8B on 8": ((32, 8, 128, 8), (SHARD_OVER_HEADS, 32, 8, 1)),
    "Llama 3.1 8B on 32": ((32, 8, 128, 32), (REPLICATED_HEADS, 32, 32, 4)),
    "Llama 2 13B on 12": ((40, 40, 128, 12), (None, 48, 40, 1)),
    "Llama 2 13B on 24": ((40, 40, 128, 24), (None, 48, 40, 1)),
    "Mistral 7B on 2": ((32, 8, 128, 2), (SHARD_OVER_HEADS, 32, 8, 1)),
    "72 heads in 24 groups on 32": ((72, 24, 64, 32), (REPLICATED_HEADS, 96, 32, 0)),
}


@pytest.mark.parametrize("row", ["0.11", "0.12", "0.13"])
@pytest.mark.parametrize("name", KNOWN)
def test_known_models(name: str, row: str) -> None:
    """Layouts that the library was seen to choose."""
    (heads, kv_heads, head_dim, tp), expected = KNOWN[name]

    found = lay_out(
        HeadTerms(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            tensor_parallel_size=tp,
            row=row,
        )
    )

    assert (
        found.mode,
        found.num_heads,
        found.num_kv_heads,
        found.kv_replication,
    ) == expected


@given(terms=head_terms_of())
def test_the_mode_is_settled(terms: HeadTerms) -> None:
    """What the decoders end up with, they would not leave again."""
    mode, reasons = effective_mode(terms)

    again, more = effective_mode(replace(terms, requested=mode))

    assert (again, more) == (mode, ())
    assert mode in MODES or (mode is None and terms.num_heads == terms.num_kv_heads)
    assert bool(reasons) == (mode != (terms.requested or (mode and SHARD_OVER_HEADS)))


@given(terms=head_terms_of())
def test_every_core_gets_whole_heads(terms: HeadTerms) -> None:
    """And the query heads of a core share its key heads evenly."""
    found, tp = lay_out(terms), terms.tensor_parallel_size
    queries = found.query_width // terms.head_dim

    assert found.num_heads % tp == 0
    assert 0 <= found.num_heads - terms.num_heads < tp
    assert queries == found.num_heads
    if found.mode not in {SHARD_OVER_BATCH, ALL_GATHER_HEADS}:
        assert found.kv_width % (tp * terms.head_dim) == 0
        keys = found.kv_width // terms.head_dim
        assert keys == found.cache_heads * tp
        assert queries // tp % (keys // tp) == 0


@given(terms=head_terms_of())
def test_no_key_head_is_lost(terms: HeadTerms) -> None:
    """Replication and padding only add."""
    found = lay_out(terms)
    held = found.cache_heads * terms.tensor_parallel_size

    assert found.num_kv_heads >= terms.num_kv_heads
    assert found.kv_width >= terms.num_kv_heads * terms.head_dim
    assert held >= terms.num_kv_heads
    if found.kv_replication > 1:
        assert found.mode == REPLICATED_HEADS
        assert found.num_kv_heads == terms.num_kv_heads * found.kv_replication


@given(terms=head_terms_of())
def test_later_versions_replicate_no_more(terms: HeadTerms) -> None:
    """0.11 stops at one key head for each core where it can."""
    old, new = (lay_out(replace(terms, row=row)) for row in ("0.10", "0.13"))

    assert new.cache_heads <= old.cache_heads
    assert new.kv_width <= old.kv_width


@given(terms=head_terms_of())
def test_a_wish_is_met_or_refused(terms: HeadTerms) -> None:
    """A mode that the library would leave is an error with the one it would take."""
    found = lay_out(terms)

    problems = [p for p in head_problems(terms) if p.code == "neuronx.gqa-fallback"]

    refused = terms.requested is not None and found.mode != terms.requested
    assert bool(problems) == refused
    for problem in problems:
        assert f"group_query_attention: {found.mode}" in problem.hint
        wish = replace(terms, requested=found.mode)
        assert [p.code for p in head_problems(wish)] != ["neuronx.gqa-fallback"]


@given(terms=head_terms_of())
def test_widths_that_cores_cannot_share_are_refused(terms: HeadTerms) -> None:
    """As the library does when it shards the weights, only later."""
    found = lay_out(terms)
    assume(terms.requested in {None, found.mode})

    codes = {problem.code for problem in head_problems(terms)}

    shared = found.kv_width % terms.tensor_parallel_size == 0
    assert ("neuronx.heads" in codes) == (not shared)


@given(terms=head_terms_of(), tp=st.sampled_from([2, 8, 32]))
def test_batches_are_not_split_when_prompts_come_alone(
    terms: HeadTerms, tp: int
) -> None:
    """Continuous batching computes prompts one by one, which no core can share."""
    wish = replace(
        terms,
        requested=SHARD_OVER_BATCH,
        batch_size=tp,
        tensor_parallel_size=tp,
        has_context=True,
    )

    alone, _ = effective_mode(replace(wish, continuous=True))
    together, _ = effective_mode(replace(wish, continuous=False))

    assert together == SHARD_OVER_BATCH
    assert alone != SHARD_OVER_BATCH


def test_a_cache_over_the_batch_has_one_layout() -> None:
    """The layout that another option asks for is refused with it."""
    terms = HeadTerms(
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        tensor_parallel_size=2,
        row="0.12",
        requested=SHARD_OVER_BATCH,
        batch_size=4,
    )

    assert [p.code for p in head_problems(terms)] == []
    codes = [p.code for p in head_problems(terms, cache_layout="BSH")]
    assert codes == ["neuronx.gqa-layout"]


@given(terms=head_terms_of())
def test_what_changes_is_told(terms: HeadTerms) -> None:
    """A line for padding, one for replication, one for the mode."""
    found = lay_out(terms)
    text = "\n".join(explain_heads(terms))

    assert ("query heads" in text) == (found.num_heads != terms.num_heads)
    assert ("key and value heads" in text) == (found.num_kv_heads != terms.num_kv_heads)
    assert ("group_query_attention" in text) == (found.mode is not None)


@given(vocab_size=st.integers(1, 300_000), tp=st.integers(1, 64))
def test_the_vocabulary_is_padded_by_less_than_a_core(vocab_size: int, tp: int) -> None:
    """To the next multiple."""
    found = padded_vocabulary(vocab_size, tp)

    assert found % tp == 0
    assert 0 <= found - vocab_size < tp
