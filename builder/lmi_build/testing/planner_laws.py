"""Laws of what a backend says before anything is built; they need no toolchain."""

from __future__ import annotations

import builtins
import io
import os
import re
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, assume, given, settings

from lmi_build.errors import Problem
from lmi_build.package.layouts import djl_properties, layout_problems
from lmi_build.package.properties import property_problem
from lmi_build.plan.planner import make_plan
from lmi_build.testing.law import Broken, Law, require
from lmi_build.testing.samples import (
    CPU,
    Case,
    accepted,
    llama_facts,
    lowered,
    names_in,
    problems,
    recipe_of,
    serving_of,
    settle,
    text_of,
    world,
)
from lmi_build.testing.strategies import any_case, near_case

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from hypothesis.strategies import SearchStrategy

    from lmi_build.spi import Backend
    from lmi_build.values.stage import Plan

_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\.[a-z0-9]+(-[a-z0-9]+)*")
_NUM_EXAMPLES = 40
_DAY_SECONDS = 86400.0
# Made before a backend is asked; no bound of an engine moves them.
_BEFORE = ("fetch", "calibration", "quantize")
_AFTER = ("package", "verify")
_PROBE = "zzqx"


def cases_of(backend: Backend) -> tuple[Case, ...]:
    """
    What a backend takes of the samples; the laws are held against these.

    Raises:
        Broken: It takes none.
    """
    return _cases(cast("Hashable", backend))


@lru_cache(maxsize=64)
def _cases(backend: Any) -> tuple[Case, ...]:
    found = accepted(backend)
    if not found:
        base = settle(backend, recipe_of(backend), llama_facts())
        said = "; ".join(p.message for p in problems(backend, base))
        raise Broken(
            f"`{backend.info.name}` takes no sample recipe on any target; on {CPU}:"
            f" {said}"
        )
    return found


def _each(strategy: SearchStrategy[Case], law: Callable[[Case], None]) -> None:
    """
    Hold a law against many cases; the same ones every time.

    Raises:
        Broken: None of them was one that the law is about.
    """
    num_held = 0

    @settings(
        max_examples=_NUM_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        # A law says what it saw; a smaller case would cost a minute.
        phases=(Phase.generate,),
    )
    @given(case=strategy)
    def holds(case: Case) -> None:
        nonlocal num_held
        law(case)
        num_held += 1

    holds()
    require(num_held, "none of the cases that were tried is taken")


def option_names(backend: Backend) -> tuple[str, ...]:
    """The options that a backend says it has, when it is given one that it has not."""
    case = cases_of(backend)[0]
    said = problems(backend, _with_option(backend, case, _PROBE))
    mine = [p for p in said if p.path == f"compile.options.{_PROBE}"]
    require(
        mine, f"the option `{_PROBE}`, which nobody has, is not refused at its line"
    )
    words = names_in(p.hint for p in mine)
    return tuple(word for word in words if word.isidentifier() and word != _PROBE)


def _with_option(backend: Backend, case: Case, name: str) -> Case:
    spec = replace(case.recipe.compile, options={name: 1})
    compiled = replace(case.recipe, compile=spec)
    written = recipe_of(
        backend,
        target=spec.target,
        method=case.recipe.quantize.method,
        ranks=spec.tensor_parallel_size,
        options={name: 1},
    )
    return replace(case, recipe=replace(compiled, spans=written.spans))


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

    _each(any_case(backend, option_names(backend)), law)


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
        require(kinds[-2:] == [*_AFTER], f"the plan ends with {kinds[-2:]}")

    _each(near_case(backend, cases_of(backend)), law)


class _Watched(dict[str, str]):
    """An environment that must not be asked."""

    def _refuse(self, name: object) -> Any:
        raise Broken(f"lowering reads the environment: {name!r}")

    __getitem__ = _refuse
    __contains__ = _refuse

    def get(self, name: str, default: Any = None) -> Any:
        """Refuse."""
        del default
        return self._refuse(name)


@contextmanager
def _sealed() -> Iterator[None]:
    """No file, no variable, and a clock that is a day ahead."""

    def refuse(path: object, *_args: object, **_kwargs: object) -> Any:
        raise Broken(f"lowering opens a file: {path!r}")

    ahead = time.time() + _DAY_SECONDS
    with ExitStack() as stack:
        for owner, name, value in (
            (os, "environ", _Watched()),
            (builtins, "open", refuse),
            (io, "open", refuse),
            (os, "open", refuse),
            (os, "listdir", refuse),
            (os, "scandir", refuse),
            (time, "time", lambda: ahead),
            (time, "time_ns", lambda: int(ahead * 1e9)),
        ):
            stack.enter_context(patch.object(owner, name, value))
        yield


def _pure(backend: Backend) -> None:
    def law(case: Case) -> None:
        assume(not problems(backend, case))
        try:
            # Catalogues are read once, and kept.
            first = text_of(lowered(backend, case))
        except (TypeError, ValueError) as error:
            raise Broken(f"what is lowered is no JSON: {error}") from error
        with _sealed():
            again = text_of(lowered(backend, case))
        require(first == again, f"lowering twice gives {_differ(first, again)}")

    _each(near_case(backend, cases_of(backend)), law)


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

    _each(near_case(backend, cases_of(backend)), law)


def _turned(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return dict(reversed(list(mapping.items())))


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


def _bounded(backend: Backend) -> None:
    for case in cases_of(backend):
        promised = _package(_plan(backend, case))["bounds"]
        for name in ("max_input_len", "max_output_len", "max_batch_size"):
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


def _keyed(backend: Backend) -> None:
    for case in cases_of(backend):
        here = {stage.kind: stage for stage in _plan(backend, case).stages}
        for name in ("max_input_len", "max_output_len", "max_batch_size"):
            for moved in _neighbours(backend, case, name):
                there = {stage.kind: stage for stage in _plan(backend, moved).stages}
                same = {kind for kind in here if here[kind].key == there[kind].key}
                early = set(_BEFORE) & set(here) - same
                require(
                    not early, f"{name} moves {sorted(early)}, made before any engine"
                )
                late = set(_AFTER) & same
                require(not late, f"{name} leaves the key of {sorted(late)} as it was")


def _named(backend: Backend) -> None:
    names = option_names(backend)
    case = cases_of(backend)[0]
    for name in names:
        wrong = name[:-1] + "qq"
        if wrong in names:
            continue
        said = problems(backend, _with_option(backend, case, wrong))
        mine = [p for p in said if p.path == f"compile.options.{wrong}"]
        require(mine, f"the option `{wrong}` is not refused at its line")
        require(
            any(name in names_in([p.message, p.hint]) for p in mine),
            f"`{wrong}` is refused without naming `{name}`, the nearest",
        )


def _familiar(backend: Backend) -> None:
    foreign = "NoSuchForCausalLM"
    for case in cases_of(backend):
        other = settle(backend, case.recipe, llama_facts(foreign))
        refused = [*backend.check(other.recipe, other.facts, other.scheme)]
        require(refused, f"a model of `{foreign}` is taken")
        ours = {case.facts.geometry.architecture, case.facts.geometry.model_type}
        listed = names_in([*(p.message for p in refused), *(p.hint for p in refused)])
        require(
            ours & set(listed),
            f"a model of `{foreign}` is refused without the list of those that are"
            f" taken: {refused[0].message}; {refused[0].hint}",
        )
        require(
            all(p.unsupported for p in refused if foreign in p.message),
            "a model that nobody supports is called a fault of the recipe",
        )


def _packed(backend: Backend) -> None:
    case = cases_of(backend)[0]
    scheme = replace(
        case.scheme, packing="no-such", weight_bits=4, weight_dtype="int", group_size=32
    )
    spec = replace(case.recipe.quantize, method="gptq", bits=4, group_size=32)
    recipe = replace(case.recipe, quantize=spec)
    require(
        [*backend.check(recipe, case.facts, scheme)],
        "weights that are packed in a way that nobody knows are taken",
    )


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
        hold=_bounded,
    ),
    Law(
        name="bounds-move-their-keys",
        says="A bound moves the package's and the proof's key, none before the engine.",
        hold=_keyed,
    ),
    Law(
        name="options-are-known",
        says="An unknown option is refused at its line, with the nearest name.",
        hold=_named,
    ),
    Law(
        name="architectures-are-known",
        says="A model of an unknown architecture is refused with the list.",
        hold=_familiar,
    ),
    Law(
        name="packings-are-known",
        says="Weights packed in a way that it cannot read are refused.",
        hold=_packed,
    ),
)
