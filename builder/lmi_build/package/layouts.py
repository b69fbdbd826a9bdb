"""
What each layout adds around an engine: its properties, as pure functions.

Source: djl-serving `PyModel.java` and `properties_manager/properties.py` for the
keys; a folder with `model.py` is served by DJL's Python engine without compiling
anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.errors import Problem
from lmi_build.package.properties import property_problem
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.spi import Serving
    from lmi_build.values.recipe import Recipe

LAYOUTS = ("djl-lmi",)
FORMATS = ("prefix", "tar.gz")
# A `model.py` handler answers one request after another; every other value of
# `option.rolling_batch` names a scheduler of LMI's own handlers.
_HANDLER_BATCHING = ("auto", "disable")


def djl_properties(recipe: Recipe, serving: Serving) -> dict[str, str]:
    """
    Every entry of `serving.properties`.

    Raises:
        ValueError: The backend set a key that belongs to the layout.
    """
    handler = {
        "engine": "Python",
        "option.entryPoint": "model.py",
        "option.rolling_batch": "disable",
    }
    if not serving.properties and not serving.handler:
        # Nothing serves it: a checkpoint, from which an engine is built elsewhere.
        return {}
    own = {
        **(handler if serving.handler else {}),
        "option.model_loading_timeout": str(recipe.serve.model_loading_timeout),
        "option.predict_timeout": str(recipe.serve.predict_timeout),
    }
    clash = sorted(
        key for key, value in serving.properties.items() if own.get(key, value) != value
    )
    if clash:
        raise ValueError(f"backend sets the layout's own property `{clash[0]}`")
    return {**own, **serving.properties}


def layout_problems(recipe: Recipe, serving: Serving) -> Iterator[Problem]:
    """Every reason why this cannot be packaged, by dotted recipe path."""
    if recipe.package.layout not in LAYOUTS:
        yield _unknown("package.layout", recipe.package.layout, LAYOUTS)
    if recipe.package.format not in FORMATS:
        yield _unknown("package.format", recipe.package.format, FORMATS)
    if serving.handler and recipe.serve.rolling_batch not in _HANDLER_BATCHING:
        yield Problem(
            code="package.rolling-batch-unused",
            message=f"`{recipe.serve.rolling_batch}` is a scheduler of LMI's built-in"
            f" handlers; backend `{recipe.compile.backend}` ships a handler of its own",
            path="serve.rolling_batch",
            hint="write `rolling_batch: auto`, or remove the line",
        )
    yield from _environment_problems(recipe)
    for name in sorted({*recipe.serve.environment} & {*serving.environment}):
        yield Problem(
            code="package.owned-variable",
            message=f"`{name}` says how the artifact was compiled",
            path=f"serve.environment.{name}",
            hint="remove it: the backend sets it",
        )
    for key, value in serving.properties.items():
        problem = property_problem(key, value)
        if problem is not None:
            yield Problem(
                code=problem.code,
                message=problem.message,
                path="compile.options",
                hint=problem.hint,
            )


def _unknown(path: str, value: str, options: tuple[str, ...]) -> Problem:
    return Problem(
        code="package.unknown-option",
        message=f"`{path}` is {value!r}",
        path=path,
        hint=f"use {join_words(options)}",
    )


def _environment_problems(recipe: Recipe) -> Iterator[Problem]:
    for name, value in recipe.serve.environment.items():
        plain = name.isascii() and name.isidentifier()
        if not plain or any(char in value for char in "\0\n\r"):
            yield Problem(
                code="package.unsafe-environment",
                message=f"{name!r} cannot be an environment variable of a container",
                path=f"serve.environment.{name}",
                hint="use letters, digits and `_` in the name and one line as value",
            )
        elif name in {"HF_MODEL_ID", "OPTION_MODEL_ID"}:
            yield Problem(
                code="package.forbidden-property",
                message=f"`{name}` would make the container load other weights",
                path=f"serve.environment.{name}",
                hint=f"remove `{name}`: the artifact holds its own engine",
            )
