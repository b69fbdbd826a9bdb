"""Numbers put into a recipe leave everything else as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.errors import RecipeInvalid
from lmi_build.recipe.nodes import compose, plain
from lmi_build.recipe.rewrite import set_numbers
from lmi_build.recipe.source import source_from_text

KEYS = ["max_input_len", "max_output_len", "max_batch_size", "max_num_tokens"]
NUMBERS = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 10**7), min_size=1)


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """A text with a section of bounds in one of the usual styles."""
    held = draw(st.permutations(KEYS))[: draw(st.integers(1, 4))]
    pairs = [f"{key}: {draw(st.integers(0, 9999))}" for key in held]
    comment = draw(st.sampled_from(["", "  # why", " # a: 1"]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    if draw(st.booleans()):
        body = [f"bounds: {{{', '.join(pairs)}}}{comment}"]
    else:
        indent = " " * draw(st.integers(1, 4))
        body = ["bounds:", *(f"{indent}{pair}{comment}" for pair in pairs)]
        body.insert(1, f"{indent}# the longest of today")
    lines = ["# head", "name: tiny", *body]
    if draw(st.booleans()):
        lines += ["", "verify: {max_seq_len: 9}  # tail"]
    return end.join(lines) + (end if draw(st.booleans()) else "")


@given(recipes(), NUMBERS)
def test_only_the_numbers_change(text: str, numbers: dict[str, int]) -> None:
    """The new document has them; without its digits the old text is still there."""
    new = set_numbers(text, "r.yaml", "bounds", numbers)
    before, after = (
        plain(compose(source_from_text("r.yaml", t)).root) for t in (text, new)
    )
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    old = before["bounds"]
    assert isinstance(old, dict)
    assert after == {**before, "bounds": {**old, **numbers}}
    assert text.count("#") == new.count("#")
    assert new.count("\r\n") * text.count("\n") == new.count("\n") * text.count("\r\n")
    if set(numbers) <= set(old):
        digits = str.maketrans("", "", "0123456789")
        assert new.translate(digits) == text.translate(digits)
    assert set_numbers(new, "r.yaml", "bounds", numbers) == new


def test_a_missing_section_is_added_at_the_end() -> None:
    new = set_numbers("name: a", "r.yaml", "bounds", {"max_input_len": 5})

    assert new == "name: a\nbounds:\n  max_input_len: 5\n"


@pytest.mark.parametrize(
    "text", ["bounds: {}\n", "bounds:\n", "bounds: [1]\n", "bounds: {a: {b: 1}}\n"]
)
def test_what_cannot_be_kept_is_refused(text: str) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        set_numbers(text, "r.yaml", "bounds", {"max_input_len": 5})

    assert caught.value.code == "recipe.rewrite"
