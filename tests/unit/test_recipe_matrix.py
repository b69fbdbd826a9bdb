"""One file, many recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.recipe.load import parse_recipe
from recipe_texts import TINY, faults

if TYPE_CHECKING:
    from lmi_build.values.recipe import Recipe

SWEEP = TINY + (
    "matrix:\n"
    "  quantize.method: [gptq, awq, smoothquant, int8]\n"
    "  compile.backend: [onnxruntime, aotinductor]\n"
    "  exclude: [{quantize.method: smoothquant, compile.backend: onnxruntime}]\n"
)


def names(text: str, *overrides: str) -> list[str]:
    """The variants' names."""
    return [recipe.name for recipe in parse_recipe(text, overrides=overrides)]


def test_variants_are_every_combination_less_the_excluded() -> None:
    """Names end in the values, in the order of the axes."""
    assert names(SWEEP) == [
        "tiny-gptq-onnxruntime",
        "tiny-gptq-aotinductor",
        "tiny-awq-onnxruntime",
        "tiny-awq-aotinductor",
        "tiny-smoothquant-aotinductor",
        "tiny-int8-onnxruntime",
        "tiny-int8-aotinductor",
    ]


def test_options_reach_the_methods_that_know_them() -> None:
    """SmoothQuant has no `group_size` and goes without it, and nobody complains."""
    recipes = {r.variant["quantize.method"]: r for r in parse_recipe(SWEEP)}

    assert recipes["gptq"].quantize.group_size == 64
    assert recipes["awq"].quantize.group_size == 64
    assert recipes["int8"].quantize.group_size == 64
    assert recipes["smoothquant"].quantize.group_size == -1


def test_an_option_no_variant_uses_is_a_problem() -> None:
    """Nothing that was set is silently without effect."""
    text = TINY.replace("group_size: 64", "desc_act: true")
    text += "matrix: {quantize.method: [int8, none]}\n"

    assert faults(text) == ["recipe.unused-option 7:3"]


def test_include_adds_variants() -> None:
    """A variant of `include` is the recipe with these values."""
    text = TINY + (
        "matrix:\n"
        "  quantize.bits: [4, 8]\n"
        "  include: [{quantize.method: int8, bounds.max_batch_size: 2}]\n"
    )

    assert names(text) == ["tiny-4", "tiny-8", "tiny-int8-2"]


def test_names_are_unique() -> None:
    """Values whose last parts are equal get numbers."""
    text = TINY + "matrix: {model.source: [one/tiny, two/tiny]}\n"

    assert names(text) == ["tiny-tiny", "tiny-tiny-2"]


def test_values_of_any_kind_have_names() -> None:
    """Booleans are words, collections a short digest."""
    text = TINY + (
        "matrix:\n  quantize.sym: [true, false]\n  quantize.ignore: [[lm_head]]\n"
    )
    first, second = names(text)

    assert first.startswith("tiny-true-")
    assert second.startswith("tiny-false-")


def test_an_override_pins_an_axis() -> None:
    """`--set` beats the matrix, even with a value the matrix has not."""
    assert names(SWEEP, "quantize.method=none", "compile.backend=vllm") == [
        "tiny-none-vllm"
    ]


def test_axes_reach_into_free_sections() -> None:
    """Options that only the backend knows can vary as well."""
    text = TINY + "matrix: {compile.options.threads: [1, 2]}\n"
    recipes = parse_recipe(text)

    assert [dict(r.compile.options) for r in recipes] == [
        {"threads": 1},
        {"threads": 2},
    ]


def test_an_axis_may_set_a_missing_key() -> None:
    """What the matrix sets need not stand in the recipe."""
    text = TINY.replace("compile:\n  backend: onnxruntime\n", "")

    assert names(text + "matrix: {compile.backend: [vllm]}\n") == ["tiny-vllm"]


def test_a_variants_problem_stands_at_the_matrix_value() -> None:
    """Faults of two axes are told once each, not once for each combination."""
    text = TINY + (
        "matrix:\n"
        "  quantize.group_size: [64, 65]\n"
        "  bounds.max_input_len: [0, 64, 128]\n"
    )

    assert faults(text) == [
        "recipe.unknown-value 14:29",
        "recipe.out-of-range 15:26",
    ]


def test_a_faulty_matrix_does_not_hide_the_rest() -> None:
    """The recipe's own problems are told beside the matrix's."""
    text = TINY.replace("name: tiny", "name: Tiny") + "matrix: {quantize.x: [1]}\n"

    assert faults(text) == ["recipe.name 2:7", "recipe.matrix-path 13:10"]


def test_variants_carry_their_values_and_documents() -> None:
    """Each variant is a whole recipe of its own, without a matrix."""

    def method(recipe: Recipe) -> object:
        section = recipe.document["quantize"]
        return section["method"] if isinstance(section, dict) else None

    recipes = parse_recipe(SWEEP)

    assert [method(r) for r in recipes] == [
        r.variant["quantize.method"] for r in recipes
    ]
    assert all("matrix" not in r.document for r in recipes)
    assert all(r.document["name"] == r.name for r in recipes)
