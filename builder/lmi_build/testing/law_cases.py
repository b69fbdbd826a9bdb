"""The cases of one backend that its laws are held against."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from hypothesis import HealthCheck, Phase, given, settings

from lmi_build.testing.law import Broken, require
from lmi_build.testing.samples import (
    CPU,
    Case,
    accepted,
    llama_facts,
    names_in,
    problems,
    recipe_of,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from hypothesis.strategies import SearchStrategy

    from lmi_build.spi import Backend

_NUM_EXAMPLES = 40
# An option that no backend has.
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


def each_case(strategy: SearchStrategy[Case], law: Callable[[Case], None]) -> None:
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
    said = problems(backend, with_option(backend, case, _PROBE))
    mine = [p for p in said if p.path == f"compile.options.{_PROBE}"]
    require(
        mine, f"the option `{_PROBE}`, which nobody has, is not refused at its line"
    )
    words = names_in(p.hint for p in mine)
    return tuple(word for word in words if word.isidentifier() and word != _PROBE)


def with_option(backend: Backend, case: Case, name: str) -> Case:
    """A case whose recipe sets one option, and nothing else of them."""
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
