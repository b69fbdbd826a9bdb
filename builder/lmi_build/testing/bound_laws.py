"""Laws of a recipe's bounds: each is promised, kept and part of the right keys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmi_build.plan.planner import make_plan
from lmi_build.testing.law import require
from lmi_build.testing.law_cases import cases_of
from lmi_build.testing.samples import lowered, problems, text_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.spi import Backend
    from lmi_build.testing.samples import Case
    from lmi_build.values.stage import Plan

_BOUNDS = ("max_input_len", "max_output_len", "max_batch_size")
# Made before a backend is asked; no bound of an engine moves them.
_BEFORE = ("fetch", "calibration", "quantize")
_AFTER = ("package", "verify")


def _neighbours(backend: Backend, case: Case, name: str) -> Iterator[Case]:
    """Yield accepted cases that differ in one bound."""
    value = getattr(case.recipe.bounds, name)
    for other in (value + 1, value - 1, 2 * value, value // 2):
        if other < 1:
            continue
        bounds = replace(case.recipe.bounds, **{name: other})
        moved = replace(
            case,
            asked=replace(case.asked, bounds=bounds),
            recipe=replace(case.recipe, bounds=bounds),
        )
        if not problems(backend, moved):
            yield moved


def bounds_are_served(backend: Backend) -> None:
    """Each bound is in the manifest and changes what is compiled or served."""
    for case in cases_of(backend):
        promised = _package(_plan(backend, case))["bounds"]
        for name in _BOUNDS:
            value = getattr(case.recipe.bounds, name)
            require(
                promised[name] == value,
                f"the recipe says {name} {value}, the manifest {promised[name]}",
            )
            moved = [*_neighbours(backend, case, name)]
            here = _made(backend, case)
            require(
                not moved or any(_made(backend, other) != here for other in moved),
                f"{name} changes nothing of what is compiled or served on"
                f" {case.recipe.compile.target}: no one can keep it",
            )


def _made(backend: Backend, case: Case) -> str:
    """What is compiled and served, without what the manifest repeats of the recipe."""
    values = lowered(backend, case)
    serving = {k: v for k, v in values["serving"].items() if k != "bounds"}
    return text_of({"stages": values["stages"], "serving": serving})


def _plan(backend: Backend, case: Case) -> Plan:
    return make_plan("law", [case.asked], world(backend, case.facts))


def _package(plan: Plan) -> dict[str, Any]:
    return dict(next(s for s in plan.stages if s.kind == "package").params)


def bounds_move_their_keys(backend: Backend) -> None:
    """A bound moves the keys after the engine, none before it."""
    for case in cases_of(backend):
        here = {stage.kind: stage for stage in _plan(backend, case).stages}
        for name in _BOUNDS:
            for moved in _neighbours(backend, case, name):
                there = {stage.kind: stage for stage in _plan(backend, moved).stages}
                same = {kind for kind in here if here[kind].key == there[kind].key}
                early = set(_BEFORE) & set(here) - same
                require(
                    not early, f"{name} moves {sorted(early)}, made before any engine"
                )
                late = set(_AFTER) & same
                require(not late, f"{name} leaves the key of {sorted(late)} as it was")
