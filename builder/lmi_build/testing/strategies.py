"""Hypothesis strategies for recipes that a backend is asked about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import assume
from hypothesis import strategies as st

from lmi_build.errors import RecipeInvalid
from lmi_build.testing.samples import (
    BOUNDS,
    METHODS,
    llama_facts,
    recipe_of,
    settle,
    targets,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.spi import Backend
    from lmi_build.testing.samples import Case

_ARCHITECTURES = ("LlamaForCausalLM", "NoSuchForCausalLM")
_WORDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)
_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**40), 2**40),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_WORDS, inner, max_size=2)
    ),
    max_leaves=4,
)


def bounds() -> st.SearchStrategy[dict[str, int]]:
    """Bounds of any size that a recipe may have."""
    return st.fixed_dictionaries(
        {
            "max_input_len": st.integers(1, 1 << 16),
            "max_output_len": st.integers(1, 1 << 14),
            "max_batch_size": st.integers(1, 512),
        },
        optional={
            "max_num_tokens": st.integers(1 << 13, 1 << 22),
            "max_beam_width": st.integers(1, 8),
        },
    )


@st.composite
def any_case(draw: st.DrawFn, backend: Backend, names: Sequence[str]) -> Case:
    """
    Recipes that a backend may take or refuse.

    Args:
        draw: Of Hypothesis.
        backend: Who is asked.
        names: Options that it has; others are made up beside them.
    """
    words = st.one_of(st.sampled_from(names), _WORDS) if names else _WORDS
    options = draw(st.dictionaries(words, _VALUES, max_size=3))
    arguments: dict[str, Any] = {
        "target": draw(st.sampled_from(targets())),
        "method": draw(st.sampled_from(METHODS)),
        "ranks": draw(st.sampled_from((1, 2, 3, 8))),
        "bounds": draw(bounds()),
        "options": options,
    }
    try:
        recipe = recipe_of(backend, **arguments)
    except RecipeInvalid:
        # What no recipe may say reaches no backend.
        assume(False)  # noqa: FBT003 - Hypothesis has it so
        raise
    return settle(backend, recipe, llama_facts(draw(st.sampled_from(_ARCHITECTURES))))


@st.composite
def near_case(draw: st.DrawFn, backend: Backend, cases: Sequence[Case]) -> Case:
    """
    Recipes that a backend probably takes: one that it does, with other bounds.

    Args:
        draw: Of Hypothesis.
        backend: Who is asked.
        cases: What it takes.
    """
    base = draw(st.sampled_from(cases))
    spec = base.recipe.compile
    wanted = {
        name: draw(st.one_of(st.just(usual), st.integers(1, 4 * usual)))
        for name, usual in BOUNDS.items()
    }
    recipe = recipe_of(
        backend,
        target=spec.target,
        method=base.recipe.quantize.method,
        ranks=spec.tensor_parallel_size,
        bounds=wanted,
    )
    return settle(backend, recipe, base.facts)
