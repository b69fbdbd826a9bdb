"""Laws of the door: round trips, totality, places that exist."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from lmi_build.digest import canonical_json
from lmi_build.errors import Problem, RecipeInvalid
from lmi_build.recipe.load import parse_recipe
from lmi_build.recipe.render import render_problems
from lmi_build.values.recipe import Recipe
from recipe_strategies import RECIPES
from recipe_texts import TINY

PIECES = [
    *("a", "bounds", "quantize.method", "matrix", "<<", "1", "0x1F", "1e999", ".nan"),
    *(": ", ":\n  ", "\n", "\n- ", "- ", "? ", "{", "}", "[", "]", ",", "#", "\t"),
    *("&a ", "*a", "!!int ", "!x ", "%YAML 1.1\n", "---\n", "...\n", "|\n", ">-\n"),
    *('"', "'", "\\", '"\\UFFFFFFFF"', '"\\x00"', "\u2028", "\ufeff", "\ud7ff", "@"),
    *("exclude", "include", "yes", "null", "~", "true", "\r", "\x85", "{{}}"),
]


def dump(document: Any) -> str:
    """A document as YAML, by another writer than ours."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(document, stream)
    return stream.getvalue()


def values(recipe: Recipe) -> dict[str, Any]:
    """All of a recipe but the places and the name of its file."""
    names = (f for f in Recipe.__slots__ if f not in {"spans", "file"})
    return {name: getattr(recipe, name) for name in names}


@given(RECIPES)
@settings(max_examples=60, deadline=None)
def test_documents_round_trip(raw: dict[str, Any]) -> None:
    """The resolved document, written as YAML and read again, is the same recipe."""
    (recipe,) = parse_recipe(json.dumps(raw))
    (again,) = parse_recipe(dump(recipe.document))

    assert values(recipe) == values(again)
    assert canonical_json(recipe.document) == canonical_json(again.document)


@given(RECIPES, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_keys_means_nothing(raw: dict[str, Any], random: Any) -> None:
    """A recipe is a set of settings, not a sequence."""
    items = list(raw.items())
    random.shuffle(items)
    (recipe,) = parse_recipe(json.dumps(raw))
    (shuffled,) = parse_recipe(json.dumps(dict(items)))

    assert values(recipe) == values(shuffled)


def expect_sound_or_invalid(text: str, *overrides: str) -> None:
    """Either recipes come out, or problems that can be drawn, each with a way out."""
    problems: tuple[Problem, ...] = ()
    recipes: tuple[Recipe, ...] = ()
    try:
        recipes = parse_recipe(text, overrides=overrides)
    except RecipeInvalid as error:
        problems = error.problems
    drawn = render_problems(problems, color=False)

    assert bool(recipes) != bool(problems)
    assert all(problem.hint for problem in problems)
    assert all(
        problem.span is not None and problem.span.line >= 1
        for problem in problems
        if problem.code != "recipe.more-problems"
    )
    assert all(c.isprintable() or c in "\n\t" for c in drawn)


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_recipe_or_invalid(text: str) -> None:
    """No text leads to anything but recipes or problems."""
    expect_sound_or_invalid(text)


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@settings(max_examples=400, deadline=None)
def test_any_yaml_like_text_is_a_recipe_or_invalid(text: str) -> None:
    """Nor does text made of YAML's own pieces."""
    expect_sound_or_invalid(text)


@given(
    st.integers(0, len(TINY)),
    st.integers(0, 12),
    st.lists(st.sampled_from(PIECES), max_size=3).map("".join),
)
@settings(max_examples=400, deadline=None)
def test_a_damaged_recipe_is_a_recipe_or_invalid(
    start: int, length: int, piece: str
) -> None:
    """Nor does a sound recipe with a piece cut out and another put in."""
    expect_sound_or_invalid(TINY[:start] + piece + TINY[start + length :])


@given(RECIPES, st.data())
@settings(max_examples=100, deadline=None)
def test_a_wrong_value_anywhere_is_told(raw: dict[str, Any], data: Any) -> None:
    """Replace any one value by one of no sense: a problem, at or above its path."""
    paths = [(s, k) for s, v in raw.items() if isinstance(v, dict) for k in v]
    section, key = data.draw(st.sampled_from(paths))
    wrong = data.draw(st.sampled_from([[[]], {"a": {}}, -7.5, None, "\n"]))
    changed = {**raw, section: {**raw[section], key: wrong}}
    if (section, key) == ("compile", "options") and isinstance(wrong, dict):
        return

    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe(json.dumps(changed))

    assert any(p.path.startswith(section) for p in caught.value.problems)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_override_is_applied_or_invalid(text: str) -> None:
    """No argument of `--set` leads to anything but recipes or problems."""
    expect_sound_or_invalid(TINY, text)


@given(
    st.sampled_from(["name", "bounds", "bounds.x", "compile.options.a", "matrix", "a"]),
    st.lists(st.sampled_from(PIECES), max_size=5).map("".join),
)
@settings(max_examples=200, deadline=None)
def test_any_override_of_a_path_is_applied_or_invalid(path: str, value: str) -> None:
    """Nor does any value of a path, real or not."""
    expect_sound_or_invalid(TINY, f"{path}={value}")


@given(
    st.dictionaries(
        st.sampled_from(
            ["quantize.method", "quantize.bits", "bounds", "exclude", "include", "x"]
        ),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.sampled_from(["gptq", "int8"])),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(["quantize.method", "bounds", "x"]),
                    inner,
                    max_size=2,
                ),
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_matrix_is_expanded_or_invalid(matrix: Any) -> None:
    """No matrix leads to anything but variants or problems."""
    expect_sound_or_invalid(TINY + f"matrix: {json.dumps(matrix)}\n")
