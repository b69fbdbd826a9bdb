"""Laws of what a backend must refuse, saying what it would take instead."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.testing.law import require
from lmi_build.testing.law_cases import cases_of, option_names, with_option
from lmi_build.testing.samples import llama_facts, names_in, problems, settle

if TYPE_CHECKING:
    from lmi_build.spi import Backend


def options_are_known(backend: Backend) -> None:
    """An unknown option is refused at its line, with the nearest name."""
    names = option_names(backend)
    case = cases_of(backend)[0]
    for name in names:
        wrong = name[:-1] + "qq"
        if wrong in names:
            continue
        said = problems(backend, with_option(backend, case, wrong))
        mine = [p for p in said if p.path == f"compile.options.{wrong}"]
        require(mine, f"the option `{wrong}` is not refused at its line")
        require(
            any(name in names_in([p.message, p.hint]) for p in mine),
            f"`{wrong}` is refused without naming `{name}`, the nearest",
        )


def architectures_are_known(backend: Backend) -> None:
    """A model of an unknown architecture is refused with the list."""
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


def packings_are_known(backend: Backend) -> None:
    """Weights packed in a way that it cannot read are refused."""
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
