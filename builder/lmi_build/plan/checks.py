"""A recipe against the model's own sizes, before anything is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.encoders import is_encoder
from lmi_build.errors import Problem
from lmi_build.plan.hessian import calibration_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.values.model import ModelFacts, ModelGeometry
    from lmi_build.values.recipe import Recipe


def check_model(recipe: Recipe, facts: ModelFacts) -> tuple[Problem, ...]:
    """
    Find what the model cannot do, whoever quantizes or compiles it.

    What depends on a provider, such as the group size, its own `check` finds.

    Args:
        recipe: A checked recipe; its spans place the problems.
        facts: The model, pinned down.

    Returns:
        Problems with places, in the order of the recipe's text.
    """
    geometry = facts.geometry
    # An encoder's positions are counted otherwise; its backend judges them.
    lengths = (
        ()
        if is_encoder(facts.config)
        else (
            *_output(recipe),
            *_positions(recipe, geometry),
            *_verify_length(recipe, geometry),
        )
    )
    problems = [
        *lengths,
        *_calibration_length(recipe, geometry),
        *calibration_problems(recipe.quantize, facts),
    ]
    located = [recipe.locate(problem) for problem in problems]
    return tuple(sorted(located, key=_place))


def _place(problem: Problem) -> tuple[str, int, int]:
    span = problem.span
    return (span.file, span.line, span.column) if span else ("", 0, 0)


def _output(recipe: Recipe) -> Iterator[Problem]:
    if recipe.bounds.max_output_len:
        return
    yield Problem(
        code="bounds.no-output",
        message="`max_output_len` is 0, and the model generates text",
        path="bounds.max_output_len",
        hint="write the most new tokens that one request may ask for",
    )


def _positions(recipe: Recipe, geometry: ModelGeometry) -> Iterator[Problem]:
    bounds, positions = recipe.bounds, geometry.max_tokens
    if bounds.max_seq_len <= positions:
        return
    yield Problem(
        code="bounds.too-long",
        message=f"prompt and output need {bounds.max_seq_len} tokens "
        f"({bounds.max_input_len} + {bounds.max_output_len}), the model has "
        f"{positions} positions",
        path="bounds.max_input_len",
        hint=_shorter(bounds.max_input_len, bounds.max_output_len, positions),
    )


def _shorter(num_input: int, num_output: int, positions: int) -> str:
    ways = []
    if num_output < positions:
        ways.append(f"lower it to {positions - num_output}")
    if num_input < positions:
        ways.append(f"lower `bounds.max_output_len` to {positions - num_input}")
    if not ways:
        half = positions // 2
        ways.append(f"lower both, for example to {positions - half} and {half}")
    return ", or ".join(ways)


def _verify_length(recipe: Recipe, geometry: ModelGeometry) -> Iterator[Problem]:
    length, positions = recipe.verify.max_seq_len, geometry.max_tokens
    if length > positions:
        yield Problem(
            code="bounds.verify-length",
            message=f"held-out sequences of {length} tokens are longer than the "
            f"model's {positions} positions",
            path="verify.max_seq_len",
            hint=f"lower it to {positions}",
        )


def _calibration_length(recipe: Recipe, geometry: ModelGeometry) -> Iterator[Problem]:
    calibration = recipe.quantize.calibration
    positions = geometry.max_tokens
    if calibration and calibration.max_seq_len > positions:
        yield Problem(
            code="bounds.calibration-length",
            message=f"calibration sequences of {calibration.max_seq_len} tokens are "
            f"longer than the model's {positions} positions",
            path="quantize.calibration.max_seq_len",
            hint=f"set it to {positions}",
        )
