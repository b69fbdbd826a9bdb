"""Laws of lowering: what a recipe promises is what the builder is told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmi_build.backends.trtllm.arguments import builds
from lmi_build.backends.trtllm.bounds import (
    Terms,
    bounds_problems,
    explain,
    lower_bounds,
    settled,
)
from lmi_build.catalog.trtllm_flags import Flag, flag_rows
from trtllm_recipes import Wish, wishes

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS = tuple(flag_rows())
# Each law is tried on every row of options.
few = settings(max_examples=40)


def read_words(words: Sequence[str], row: str) -> dict[str, str | bool]:
    """Words as a parser takes them; a word out of place or said twice is a fault."""
    flags = flag_rows()[row].flags
    found: dict[str, str | bool] = {}
    rest = list(words)
    while rest:
        name = rest.pop(0)
        assert name.startswith("--"), name
        flag = flags[name[2:]]
        assert flag.name not in found, f"{name} is said twice"
        found[flag.name] = True if flag.kind == "switch" else value_of(flag, rest)
    return found


def value_of(flag: Flag, rest: list[str]) -> str:
    """The one word that follows an option, checked as its parser would."""
    word = rest.pop(0)
    if flag.kind == "int":
        assert str(int(word)) == word
    elif flag.kind == "enable":
        assert word in {"enable", "disable"}
    elif flag.kind == "choice":
        assert word in flag.choices
    return word


@pytest.mark.parametrize("row", ROWS)
@few
@given(wish=wishes(), kv_cache_dtype=st.sampled_from(["auto", "int8"]))
def test_every_bound_arrives_unchanged(
    row: str, wish: Wish, kv_cache_dtype: str
) -> None:
    """What is not refused reaches the command as the recipe says it."""
    bounds = wish.bounds
    terms = Terms(flags=row, options=wish.options, kv_cache_dtype=kv_cache_dtype)
    assume(not list(bounds_problems(bounds, terms)))

    (build,) = builds(lower_bounds(bounds, terms), terms, dtype="float16")
    told = read_words(build.arguments, row)

    assert told["max_input_len"] == str(bounds.max_input_len)
    assert told["max_batch_size"] == str(bounds.max_batch_size)
    assert told["max_beam_width"] == str(bounds.max_beam_width)
    if "max_seq_len" in flag_rows()[row].flags:
        assert told["max_seq_len"] == str(bounds.max_seq_len)
        assert "max_output_len" not in told
    else:
        assert told["max_output_len"] == str(bounds.max_output_len)
    if bounds.max_num_tokens is not None:
        assert told["max_num_tokens"] == str(bounds.max_num_tokens)
    assert {name: str(value) for name, value in build.bounds.items()}.items() <= (
        told.items()
    )


@pytest.mark.parametrize("row", ROWS)
@few
@given(wish=wishes(), kv_cache_dtype=st.sampled_from(["auto", "int8"]))
def test_the_builder_has_nothing_to_change(
    row: str, wish: Wish, kv_cache_dtype: str
) -> None:
    """Packed tokens stand as `check_max_num_tokens` would leave them."""
    bounds = wish.bounds
    terms = Terms(flags=row, options=wish.options, kv_cache_dtype=kv_cache_dtype)
    assume(not list(bounds_problems(bounds, terms)))

    engine = lower_bounds(bounds, terms)

    assert settled(engine.max_num_tokens, bounds, terms) == engine.max_num_tokens
    if engine.opt_num_tokens is not None:
        assert 1 <= engine.opt_num_tokens <= engine.max_num_tokens
    if engine.max_num_tokens < bounds.max_input_len:
        assert engine.chunked_context
        assert engine.paged_context_fmha
    assert explain(bounds, terms)


@pytest.mark.parametrize("row", ROWS)
@few
@given(wish=wishes())
def test_hints_lead_out(row: str, wish: Wish) -> None:
    """Too many packed tokens: whoever takes the number of each hint gets an engine."""
    bounds = replace(wish.bounds, max_num_tokens=10**10)
    terms = Terms(flags=row, options={})
    found = list(bounds_problems(bounds, terms))
    assert found
    # Beams that no number of packed tokens holds have a hint of their own.
    assume(found[0].path == "bounds.max_num_tokens")

    for _ in range(2):
        if found:
            number = found[0].hint.split("`")[1].removeprefix("max_num_tokens: ")
            bounds = replace(bounds, max_num_tokens=int(number))
            found = list(bounds_problems(bounds, terms))

    assert [problem.message for problem in found] == []


@pytest.mark.parametrize("row", [row for row in ROWS if row not in {"0.8", "0.9"}])
@few
@given(wish=wishes())
def test_an_encoder_takes_the_prompt(row: str, wish: Wish) -> None:
    """Two engines: the prompt's length is the encoder's, the answer's the decoder's."""
    bounds = wish.bounds
    terms = Terms(flags=row, options={}, encoder=True)
    assume(not list(bounds_problems(bounds, terms)))

    made = builds(lower_bounds(bounds, terms), terms, dtype="bfloat16")
    encoder, decoder = (read_words(build.arguments, row) for build in made)

    assert encoder["max_input_len"] == str(bounds.max_input_len)
    assert decoder["max_encoder_input_len"] == str(bounds.max_input_len)
    assert decoder["max_input_len"] == "1"
    if "max_seq_len" in flag_rows()[row].flags:
        assert decoder["max_seq_len"] == str(1 + bounds.max_output_len)
    else:
        assert decoder["max_output_len"] == str(bounds.max_output_len)
    assert encoder["context_fmha"] == decoder["context_fmha"] == "disable"
