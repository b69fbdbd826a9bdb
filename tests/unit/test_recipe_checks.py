"""A recipe against a model's own sizes."""

from __future__ import annotations

from dataclasses import replace

from lmi_build.plan.checks import check_model
from lmi_build.recipe.load import parse_recipe
from recipe_texts import TINY
from smollm2 import facts


def problems(*overrides: str, **changes: int) -> list[tuple[str, str, str]]:
    """Code, `file:line:column` and hint of each problem."""
    (recipe,) = parse_recipe(TINY, overrides=overrides)
    found = []
    for problem in check_model(recipe, facts(**changes)):
        span = problem.span
        assert span is not None
        place = f"{span.file}:{span.line}:{span.column}"
        found.append((problem.code, place, problem.hint))
    return found


def test_a_model_that_fits_has_no_problem() -> None:
    """Sizes within the model are silently right."""
    assert problems() == []


def test_the_last_position_fits() -> None:
    """The sum of the bounds may be the model's positions, and no more."""
    fits = ("bounds.max_input_len=8160",)
    too_long = ("bounds.max_input_len=8161",)

    assert problems(*fits) == []
    assert problems(*too_long) == [
        (
            "bounds.too-long",
            "--set:1:22",
            "lower it to 8160, or lower `bounds.max_output_len` to 31",
        )
    ]


def test_relative_positions_take_the_bounds_of_the_recipe() -> None:
    """A model without a last position has none that a recipe could exceed."""
    long = ("bounds.max_input_len=100000", "verify.max_seq_len=100000")
    (recipe,) = parse_recipe(TINY, overrides=long)
    model = facts()
    endless = replace(model.geometry, max_position_embeddings=0)

    assert check_model(recipe, model)
    assert check_model(recipe, replace(model, geometry=endless)) == ()


def test_the_message_has_all_numbers() -> None:
    """Both bounds, their sum, and the model's positions."""
    (recipe,) = parse_recipe(TINY)
    found = check_model(recipe, facts(max_position_embeddings=95))

    assert [p.message for p in found if p.code == "bounds.too-long"] == [
        "prompt and output need 96 tokens (64 + 32), the model has 95 positions"
    ]


def test_bounds_that_fit_in_no_way_get_a_pair() -> None:
    """When lowering one of them is not enough, both are proposed."""
    found = problems(
        "bounds.max_output_len=64",
        "quantize.calibration.max_seq_len=32",
        "verify.max_seq_len=32",
        max_position_embeddings=33,
    )

    assert [hint for code, _, hint in found if code == "bounds.too-long"] == [
        "lower both, for example to 17 and 16"
    ]


def test_sequences_longer_than_the_model_are_told() -> None:
    """Calibration and verification have the same limit as the bounds."""
    found = problems(
        "quantize.calibration.max_seq_len=96",
        "verify.max_seq_len=96",
        max_position_embeddings=95,
    )

    assert {code for code, _, _ in found} == {
        "bounds.too-long",
        "bounds.calibration-length",
        "bounds.verify-length",
    }
