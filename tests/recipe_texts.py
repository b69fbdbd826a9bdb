"""A small sound recipe, and the way its faults are written down for tests."""

from __future__ import annotations

from lmi_build.errors import RecipeInvalid
from lmi_build.recipe.load import parse_recipe

TINY = """\
schema: lmi-build/v1
name: tiny
model:
  source: owner/tiny
quantize:
  method: gptq
  group_size: 64
bounds:
  max_input_len: 64
  max_output_len: 32
compile:
  backend: onnxruntime
"""


def faults(text: str, *overrides: str) -> list[str]:
    """`code line:column` of every problem of a recipe, none for a sound one."""
    try:
        parse_recipe(text, overrides=overrides)
    except RecipeInvalid as error:
        return [describe(error, index) for index in range(len(error.problems))]
    return []


def describe(error: RecipeInvalid, index: int = 0) -> str:
    """One problem's code and place."""
    problem = error.problems[index]
    assert problem.span is not None, problem
    return f"{problem.code} {problem.span.line}:{problem.span.column}"
