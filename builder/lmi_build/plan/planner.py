"""
The planner: recipes and facts in, stages with keys out.

Pure: what it knows of the world comes in `World`. The same recipe, facts and
versions give the same keys on a laptop, in a container and in a job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.errors import Problem, RecipeInvalid, Unsupported
from lmi_build.package.layouts import layout_problems
from lmi_build.plan.chain import chain_of
from lmi_build.plan.checks import check_model
from lmi_build.plan.locked import as_locked, hold
from lmi_build.plan.settled import compiler_scheme, float_scheme, known, settled
from lmi_build.plan.world import World
from lmi_build.sources.prequantized import source_problems
from lmi_build.text import join_words
from lmi_build.values.recipe import COMPILER
from lmi_build.values.stage import Plan, PlannedArtifact, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lmi_build.digest import Digest
    from lmi_build.spi import Backend, Quantizer
    from lmi_build.values.recipe import Recipe

__all__ = [
    "World",
    "check",
    "check_providers",
    "compiler_scheme",
    "float_scheme",
    "make_plan",
]


def make_plan(name: str, recipes: Sequence[Recipe], world: World) -> Plan:
    """
    Plan every variant; stages that several share stand once.

    Args:
        name: Name of the recipe file's recipe.
        recipes: Its variants.
        world: Facts.

    Raises:
        RecipeInvalid: Every problem of every variant.
    """
    check(recipes, world)
    stages: dict[Digest, Stage] = {}
    artifacts = []
    for recipe in recipes:
        chain = chain_of(recipe, world)
        for stage in chain:
            stages.setdefault(stage.key, stage)
        keys = {stage.kind: stage.key for stage in chain}
        artifacts.append(PlannedArtifact(name=recipe.name, stages=keys))
    return Plan(recipe=name, stages=tuple(stages.values()), artifacts=tuple(artifacts))


def check(recipes: Sequence[Recipe], world: World) -> None:
    """
    Hold recipes against their models and providers.

    Raises:
        RecipeInvalid: Every problem of every variant.
    """
    problems = [p for recipe in recipes for p in _problems(recipe, world)]
    if problems:
        raise RecipeInvalid(_unique(problems))


def _unique(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    def place(problem: Problem) -> tuple[str, int, int]:
        span = problem.span
        return (span.file, span.line, span.column) if span else ("", 0, 0)

    return tuple(sorted(dict.fromkeys(problems), key=place))


def _problems(recipe: Recipe, world: World) -> Iterable[Problem]:
    facts = world.facts[recipe.name]
    world = as_locked(recipe, world)
    found = [*check_model(recipe, facts)]
    missing = check_providers(recipe, world.quantizer, world.backend)
    if missing:
        found += missing
        return [recipe.locate(problem) for problem in found]
    packed = source_problems(recipe, facts)
    if packed:
        return [recipe.locate(problem) for problem in (*found, *packed)]
    recipe = settled(recipe, world)
    scheme = float_scheme(facts)
    if recipe.quantize.provider == COMPILER:
        scheme = compiler_scheme(recipe.quantize)
    elif recipe.quantize.method != "none":
        quantizer = world.quantizer(recipe.quantize.provider)
        found += quantizer.check(recipe, facts)
        scheme = quantizer.scheme(recipe.quantize, facts)
    backend = world.backend(recipe.compile.backend)
    refused = [*backend.check(recipe, facts, scheme)]
    if not refused:
        here = dict(world.versions(backend.info.distributions))
        hold(recipe, "compile", "", here)
        versions = known(here)
        serving = backend.serving(recipe, facts, scheme, world.host, versions)
        refused += layout_problems(recipe, serving)
    found += refused
    return [recipe.locate(problem) for problem in found]


def check_providers(
    recipe: Recipe,
    quantizer: Callable[[str], Quantizer],
    backend: Callable[[str], Backend],
) -> list[Problem]:
    """Find what no installed provider can do, without knowing the model."""
    found = []
    spec = recipe.quantize
    if spec.method != "none":
        try:
            methods = quantizer(spec.provider).info.methods
        except Unsupported as error:
            found.append(_missing(error, "quantize.provider"))
        else:
            if spec.method not in methods:
                found.append(_no_method(spec.method, spec.provider, methods))
    try:
        reads_head = backend(recipe.compile.backend).info.quantized_head
    except Unsupported as error:
        found.append(_missing(error, "compile.backend"))
    else:
        if spec.lm_head and not reads_head:
            found.append(_no_head(recipe.compile.backend))
    return [recipe.locate(problem) for problem in found]


def _missing(error: Unsupported, path: str) -> Problem:
    hint = error.hints[0] if error.hints else ""
    return Problem(
        code=error.code, message=error.message, path=path, hint=hint, unsupported=True
    )


def _no_method(method: str, provider: str, methods: Sequence[str]) -> Problem:
    return Problem(
        code="quantize.method-unsupported",
        message=f"the provider `{provider}` has no method `{method}`",
        path="quantize.method",
        hint=f"use {join_words(methods)}",
        unsupported=True,
    )


def _no_head(backend: str) -> Problem:
    return Problem(
        code="quantize.head",
        message=f"`compile.backend: {backend}` was not tried with a quantized head",
        path="quantize.lm_head",
        hint="use `lm_head: false`, or another backend",
        unsupported=True,
    )
