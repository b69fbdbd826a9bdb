"""
The library of `lmi-build size`: what a model takes on a device, from headers alone.

```python
recipe = load_recipe(Path("recipe.yaml"))[0]
report = size_recipe(recipe, resolve([recipe], settings)[recipe.name])
report.fit.verdict
```
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build import registry
from lmi_build.catalog.instances import instances
from lmi_build.catalog.runtimes import runtimes
from lmi_build.errors import DoesNotFit, Problem, RecipeInvalid, UsageInvalid
from lmi_build.plan.beside import Beside, with_beside
from lmi_build.plan.places import size_ways, thinned
from lmi_build.plan.sizes import (
    advise,
    answer,
    build_need,
    place_of,
    size_of,
    subject_of,
)
from lmi_build.sizing.fit import CANNOT, FITS
from lmi_build.units import format_bytes
from lmi_build.values.quant import PACKINGS
from lmi_build.values.recipe import COMPILER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.market import Market
    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.plan.places import Way
    from lmi_build.plan.sizes import SizeReport
    from lmi_build.sizing.fit import FitReport
    from lmi_build.sizing.memory import Subject
    from lmi_build.spi import Host
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import ModelSpec, QuantSpec, Recipe
    from lmi_build.values.settings import Settings

# Methods by what they lose: name, bits, group size.
_SMALLER = (("int8", 8, -1), ("gptq", 4, 128))
# Targets that name no machine: no catalogue has their memory.
_NO_MACHINE = ("cpu", "cuda")
_NEURONX = "neuronx"
# Which line of a recipe makes a part of the memory smaller.
_PLACES = {
    "key-value cache": "bounds.max_batch_size",
    "activations": "bounds.max_input_len",
    "logits and sampling": "bounds.max_batch_size",
}


def size_recipe(
    recipe: Recipe,
    facts: ModelFacts,
    *,
    memory_bytes: int = 0,
    host: Host | None = None,
    market: Market | None = None,
    beside: Beside | None = None,
) -> SizeReport:
    """
    Size a recipe's model on its target.

    Args:
        recipe: A checked recipe.
        facts: Its model, as `api.resolve` finds it.
        memory_bytes: What a device has, instead of what the target says.
        host: This machine, as `api.host` tells it; None leaves out what building takes.
        market: Instances of the user's own beside those shipped.
        beside: Adapters and a draft model; None takes what the recipe's environment
            says of adapters.

    Raises:
        RecipeInvalid: The target or the release is not known, or not fit for another.
        Unsupported: A provider of the recipe is not installed.
        UsageInvalid: The target has too few devices.
    """
    backend = registry.backend(recipe.compile.backend)
    recipe = replace(recipe, quantize=backend.quantization(recipe, facts))
    problems = tuple(recipe.locate(fault) for fault in _target_problems(recipe, facts))
    if problems:
        raise RecipeInvalid(problems)
    spec, runtime = recipe.compile, _runtime(recipe.compile.backend)
    tp, pp = spec.tensor_parallel_size, spec.pipeline_parallel_size
    instance = _instance(spec.target, tp * pp, market)
    # What belongs to one backend is imported where it is asked: `plan` asks each time.
    if spec.backend == "tensorrt-llm":
        from lmi_build.plan.trtllm_sizes import trtllm_runtime

        runtime = trtllm_runtime(recipe, facts, runtime)
    place = place_of(instance, runtime, tp=tp, pp=pp, memory_bytes=memory_bytes)
    subject = with_beside(
        subject_of(facts, recipe.quantize, registry.quantizer),
        beside or Beside(),
        recipe.serve.environment,
        registry.quantizer,
    )
    report = size_of(recipe.name, subject, recipe.bounds, place, instance)
    report = _advised(report, facts, recipe.quantize, market)
    if _counts_cores(recipe, facts):
        from lmi_build.plan.neuron_sizes import neuron_changes, neuron_fit

        found = neuron_fit(recipe, facts, place)
        ways = () if found.verdict == FITS else neuron_changes(recipe, facts, place)
        report = replace(report, fit=found, changes=tuple(ways))
    if host is None:
        return report
    name = recipe.quantize.provider
    quantizer = registry.quantizer("builtin" if name == COMPILER else name)
    need = build_need(recipe, facts, quantizer, backend, host)
    return replace(report, build=need)


def resolve_facts(spec: ModelSpec, settings: Settings) -> ModelFacts:
    """
    Learn a model's sizes; no weight is read.

    Raises:
        SourceInvalid: The model is missing, broken or refused.
        RemoteFailed: The hub or S3 refused or vanished.
    """
    from lmi_build.sources.resolve import resolve_model

    return resolve_model(
        spec, settings=settings, base=Path.cwd(), hashed=False, served=False
    )


def size_model(  # noqa: PLR0913 - one keyword for each thing that is asked
    facts: ModelFacts,
    spec: QuantSpec,
    bounds: Bounds,
    *,
    target: str | Instance,
    runtime: str,
    tp: int,
    memory_bytes: int = 0,
    market: Market | None = None,
    beside: Beside | None = None,
) -> SizeReport:
    """
    Size a model.

    Args:
        facts: The model.
        spec: How its weights become smaller.
        bounds: What is served.
        target: An instance type or its name, `cpu` or `cuda`.
        runtime: A key of `catalog.runtimes.runtimes()`.
        tp: Devices that a layer is split over.
        memory_bytes: What a device has, instead of what the target says.
        market: Instances of the user's own beside those shipped.
        beside: Adapters and a draft model.

    Raises:
        UsageInvalid: There is no such target or runtime, or too few devices.
    """
    instance, row = _instance(target, tp, market), _runtime(runtime)
    place = place_of(instance, row, tp=tp, memory_bytes=memory_bytes)
    subject = subject_of(facts, spec, registry.quantizer)
    subject = with_beside(subject, beside or Beside(), {}, registry.quantizer)
    report = size_of(facts.source, subject, bounds, place, instance)
    return _advised(report, facts, spec, market)


def _instance(
    target: str | Instance, tp: int, market: Market | None = None
) -> Instance | None:
    if isinstance(target, str):
        return None if target in _NO_MACHINE else find_instance(target, tp, market)
    return target


def _runtime(name: str) -> Runtime:
    if name not in runtimes():
        raise UsageInvalid(
            f"memory of `{name}` is not known",
            code="size.unknown-runtime",
            hints=(f"use one of {', '.join(runtimes())}",),
        )
    return runtimes()[name]


def _advised(
    report: SizeReport, facts: ModelFacts, spec: QuantSpec, market: Market | None
) -> SizeReport:
    """A report with the changes that make it fit, where it does not."""
    machines = (instances() if market is None else market.instances).values()
    forms = _other_forms(facts, spec, report.place.runtime.name)
    return advise(report, forms, machines)


def compare_places(
    report: SizeReport,
    facts: ModelFacts,
    spec: QuantSpec,
    *,
    market: Market,
    region: str,
    recipe: Recipe | None = None,
) -> tuple[Way, ...]:
    """
    The same model and bounds in every instance of the same kind of device.

    Args:
        report: From `size_recipe` or `size_model`.
        facts: The model.
        spec: How its weights become smaller.
        market: Instances and prices.
        region: Of the prices.
        recipe: What was sized, where it was one; NeuronX counts cores by it.

    Returns:
        The best way of each instance and format, the cheapest first; nothing where
        the kind of device is not known.
    """
    if report.place.runtime.name == _NEURONX:
        from lmi_build.plan.neuron_ways import neuron_model_ways, neuron_ways

        if recipe is None:
            return thinned(neuron_model_ways(report, market, region))
        backend = registry.backend(_NEURONX)
        made = replace(recipe, quantize=backend.quantization(recipe, facts))
        found = neuron_ways(
            report, made, facts, market=market, region=region, backend=backend
        )
        return thinned(found)
    own = report.subject
    forms = {
        words: replace(form, adapters=own.adapters, draft=own.draft)
        for words, form in _other_forms(facts, spec, report.place.runtime.name)
    }
    return thinned(size_ways(report, forms, market, region))


def _other_forms(
    facts: ModelFacts, spec: QuantSpec, runtime: str
) -> Iterator[tuple[str, Subject]]:
    """What else the model could be made of that the runtime reads, least loss first."""
    if facts.config.get("quantization_config") is not None:
        return
    reads: tuple[str, ...] = PACKINGS
    if runtime in registry.names(registry.BACKENDS):
        reads = registry.backend(runtime).info.packings
    for method, bits, group_size in _SMALLER:
        if bits >= spec.bits:
            continue
        other = replace(
            spec,
            method=method,
            bits=bits,
            group_size=group_size,
            provider="builtin",
            format="auto",
            activations="none",
        )
        words = f"{method}, bits: {bits}" if method != "int8" else method
        form = subject_of(facts, other, registry.quantizer)
        if form.scheme.packing in reads:
            yield words, form


def largest(
    report: SizeReport,
    question: str,
    recipe: Recipe | None = None,
    facts: ModelFacts | None = None,
) -> SizeReport:
    """
    A report with the largest value of one bound that fits.

    Args:
        report: From `size_recipe` or `size_model`.
        question: `batch`, `input` or `output`.
        recipe: What `size_recipe` was given.
        facts: Its model.

    Raises:
        UsageInvalid: Nobody said how much memory there is.
    """
    if report.place.capacity is None:
        raise UsageInvalid(
            "the memory of the target is not known, so nothing is the largest",
            code="size.no-capacity",
            hints=("say it: `--memory 24GiB`",),
        )
    if recipe is not None and facts is not None and _counts_cores(recipe, facts):
        from lmi_build.plan.neuron_sizes import neuron_largest

        found = neuron_largest(question, recipe, facts, report.place)
        return replace(report, largest=found)
    return answer(report, question)


def _target_problems(recipe: Recipe, facts: ModelFacts) -> Iterator[Problem]:
    """What the backend finds wrong with target and release."""
    spec = recipe.compile
    if spec.backend == "tensorrt-llm":
        from lmi_build.backends.trtllm.target import target_problems as gpu_problems

        yield from gpu_problems(spec)
    elif spec.backend == "vllm":
        from lmi_build.backends.vllm.target import target_problems as folder_problems

        yield from folder_problems(recipe)
    elif spec.backend == "neuronx":
        from lmi_build.backends.neuronx.encoders import is_encoder
        from lmi_build.backends.neuronx.target import target_problems as neuron_problems

        yield from neuron_problems(spec, encoder=is_encoder(facts.config))


def _counts_cores(recipe: Recipe, facts: ModelFacts) -> bool:
    """Whether the backend counts the memory of a core to the byte."""
    if recipe.compile.backend != "neuronx":
        return False
    from lmi_build.plan.neuron_sizes import loader_of

    return loader_of(recipe, facts) == "tnx"


def find_instance(target: str, tp: int, market: Market | None = None) -> Instance:
    """
    An instance type with enough devices.

    Args:
        target: Its name, with or without `ml.`.
        tp: Devices that are wanted, stages included.
        market: Instances of the user's own beside those shipped.

    Raises:
        UsageInvalid: There is none of that name, or it has too few devices.
    """
    from lmi_build.text import did_you_mean

    name = target if target.startswith("ml.") else f"ml.{target}"
    known = instances() if market is None else market.instances
    found = known.get(name)
    if found is None:
        near = did_you_mean(name, tuple(known))
        raise UsageInvalid(
            f"the catalogue has no instance type `{target}`",
            code="size.unknown-target",
            hints=(f"did you mean `{near}`?" if near else "such as `ml.g5.2xlarge`",),
        )
    if tp > max(1, found.num_cores):
        raise UsageInvalid(
            f"{tp} ranks are more than the {found.num_cores} devices of `{name}`",
            code="size.too-few-devices",
            hints=(f"write {found.num_cores}, or take a larger instance",),
        )
    return found


def plan_sizes(
    recipes: Iterable[Recipe], facts: Mapping[str, ModelFacts]
) -> dict[str, SizeReport]:
    """
    Sizes of the recipes whose backend's memory is known.

    Args:
        recipes: Checked recipes.
        facts: Recipe name to its model.
    """
    return {
        recipe.name: size_recipe(recipe, facts[recipe.name])
        for recipe in recipes
        if recipe.compile.backend in runtimes()
    }


def size_lines(report: SizeReport | None) -> tuple[str, ...]:
    """
    A few lines about memory for a plan.

    Args:
        report: From `plan_sizes`; None where the backend's memory is not known.

    Returns:
        The verdict, and up to three changes that fit; nothing without a report.
    """
    if report is None:
        return ()
    ways = (f"it fits if you {change.text}" for change in report.changes[:3])
    return (headline(report), *ways)


def headline(report: SizeReport) -> str:
    """The verdict in one line."""
    found = report.fit
    need = f"{format_bytes(found.total.low)} to {format_bytes(found.total.high)}"
    if found.capacity is None or found.margin_bytes is None:
        return f"memory while serving: {need}, most of it {found.binding}"
    worst = found.margin_bytes[0]
    where = f" of {report.instance.name}" if report.instance else ""
    left = f"{format_bytes(abs(worst))} {'left' if worst >= 0 else 'missing'} at worst"
    return (
        f"memory of each device{where}: {need} of {format_bytes(found.capacity.high)}:"
        f" {found.verdict}, {left}, most of it {found.binding}"
    )


def refuse(report: SizeReport, recipe: Recipe | None) -> None:
    """
    Refuse what cannot fit.

    Args:
        report: What was found.
        recipe: Whose line is pointed at; None without a recipe.

    Raises:
        DoesNotFit: `size.does-not-fit`; with a recipe a `RecipeInvalid` that has the
            place, and the same exit status.
    """
    found = report.fit
    if found.verdict != CANNOT or found.capacity is None:
        return
    message = _message(found, found.capacity.high)
    ways = tuple(change.text for change in report.changes)
    if recipe is None:
        raise DoesNotFit(message, code="size.does-not-fit", hints=ways)
    problem = Problem(
        code="size.does-not-fit",
        message=message,
        path=_PLACES.get(found.binding, "compile.target"),
        hint=", or ".join(ways),
    )
    error = RecipeInvalid((recipe.locate(problem),))
    error.exit_code = DoesNotFit.exit_code
    raise error


def _message(found: FitReport, capacity: int) -> str:
    need = found.total.low
    return (
        f"each device needs at least {format_bytes(need)} and has"
        f" {format_bytes(capacity)}: {format_bytes(need - capacity)} are missing; most"
        f" of it is {found.binding}"
    )
