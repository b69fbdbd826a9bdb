"""Laws of what a backend says before anything is built; they need no toolchain."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import assume

from lmi_build.errors import Problem
from lmi_build.package.layouts import djl_properties, layout_problems
from lmi_build.package.properties import property_problem
from lmi_build.plan.planner import make_plan
from lmi_build.testing.bound_laws import bounds_are_served, bounds_move_their_keys
from lmi_build.testing.law import Broken, Law, require
from lmi_build.testing.law_cases import cases_of, each_case, option_names
from lmi_build.testing.refusal_laws import (
    architectures_are_known,
    options_are_known,
    packings_are_known,
)
from lmi_build.testing.samples import lowered, problems, serving_of, text_of, world
from lmi_build.testing.sealed import sealed
from lmi_build.testing.strategies import any_case, near_case

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.spi import Backend
    from lmi_build.testing.samples import Case

_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\.[a-z0-9]+(-[a-z0-9]+)*")
_END = ["package", "verify"]


def _located(backend: Backend) -> None:
    def law(case: Case) -> None:
        try:
            found = list(backend.check(case.recipe, case.facts, case.scheme))
        except Exception as error:
            raise Broken(f"`check` raises {error!r} on {_said(case)}") from error
        for problem in found:
            require(isinstance(problem, Problem), f"`check` yields {problem!r}")
            require(_SLUG.fullmatch(problem.code), f"{problem.code!r} is no slug")
            require(problem.message.strip(), f"`{problem.code}` has no message")
            require(problem.hint.strip(), f"`{problem.code}` says no way out")
            placed = case.recipe.locate(problem)
            require(
                problem.path and placed.span is not None,
                f"`{problem.code}` has no place: its path is {problem.path!r}",
            )

    each_case(any_case(backend, option_names(backend)), law)


def _said(case: Case) -> str:
    return text_of(case.recipe.document)


def _whole(backend: Backend) -> None:
    def law(case: Case) -> None:
        assume(not problems(backend, case))
        try:
            stages = backend.stages(
                case.recipe, case.facts, case.scheme, world(backend, case.facts).host
            )
            serving = serving_of(backend, case)
            plan = make_plan("law", [case.asked], world(backend, case.facts))
        except Exception as error:
            raise Broken(
                f"`check` takes {_said(case)}, and lowering ends with {error!r}"
            ) from error
        require(stages, "there is no stage between the checkpoint and the package")
        known = {"fetch", "weights"}
        for step in stages:
            lost = set(step.inputs.values()) - known
            require(
                not lost, f"the stage `{step.kind}` reads {lost}, which nobody makes"
            )
            known.add(step.kind)
        require(
            not [*layout_problems(case.recipe, serving)],
            f"what is served cannot be packed: {_said(case)}",
        )
        for key, value in djl_properties(case.recipe, serving).items():
            require(
                property_problem(key, value) is None,
                f"the property `{key}` cannot be written: {value!r}",
            )
        kinds = [stage.kind for stage in plan.stages]
        require(kinds[-2:] == _END, f"the plan ends with {kinds[-2:]}")

    each_case(near_case(backend, cases_of(backend)), law)


def _pure(backend: Backend) -> None:
    def law(case: Case) -> None:
        assume(not problems(backend, case))
        try:
            # Catalogues are read once, and kept.
            first = text_of(lowered(backend, case))
        except (TypeError, ValueError) as error:
            raise Broken(f"what is lowered is no JSON: {error}") from error
        with sealed():
            again = text_of(lowered(backend, case))
        require(first == again, f"lowering twice gives {_differ(first, again)}")

    each_case(near_case(backend, cases_of(backend)), law)


def _differ(one: str, two: str) -> str:
    """The first place where two texts differ."""
    place = next(
        (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), 0
    )
    start = max(0, place - 60)
    return f"{one[start : place + 40]!r} and {two[start : place + 40]!r}"


def _orderless(backend: Backend) -> None:
    def law(case: Case) -> None:
        assume(not problems(backend, case))
        recipe, facts = case.recipe, case.facts
        turned = replace(
            case,
            recipe=replace(
                recipe,
                document=_turned(recipe.document),
                compile=replace(
                    recipe.compile, options=_turned(recipe.compile.options)
                ),
            ),
            facts=replace(facts, config=_turned(facts.config)),
        )
        first, second = lowered(backend, case), lowered(backend, turned)
        require(
            text_of(first) == text_of(second),
            "the order of keys in a mapping changes what is lowered:"
            f" {_differ(text_of(first), text_of(second))}",
        )

    each_case(near_case(backend, cases_of(backend)), law)


def _turned(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return dict(reversed(list(mapping.items())))


PLANNER_LAWS: tuple[Law[Backend], ...] = (
    Law(
        name="problems-are-located",
        says="`check` never raises; each problem has a slug, a place and a way out.",
        hold=_located,
    ),
    Law(
        name="accepted-lowers",
        says="What `check` takes has stages, serving, proof and a whole plan.",
        hold=_whole,
    ),
    Law(
        name="lowering-is-pure",
        says="Lowering is JSON, the same again, and reads no file, variable or clock.",
        hold=_pure,
    ),
    Law(
        name="order-means-nothing",
        says="The order of keys in a mapping does not change what is lowered.",
        hold=_orderless,
    ),
    Law(
        name="bounds-are-served",
        says="Each bound is in the manifest and changes what is compiled or served.",
        hold=bounds_are_served,
    ),
    Law(
        name="bounds-move-their-keys",
        says="A bound moves the package's and the proof's key, none before the engine.",
        hold=bounds_move_their_keys,
    ),
    Law(
        name="options-are-known",
        says="An unknown option is refused at its line, with the nearest name.",
        hold=options_are_known,
    ),
    Law(
        name="architectures-are-known",
        says="A model of an unknown architecture is refused with the list.",
        hold=architectures_are_known,
    ),
    Law(
        name="packings-are-known",
        says="Weights packed in a way that it cannot read are refused.",
        hold=packings_are_known,
    ),
)
