"""
The library of `lmi-build cost`: what serving a recipe costs, before it is built.

```python
recipe = load_recipe(Path("recipe.yaml"))[0]
facts = resolve([recipe], settings)[recipe.name]
report = cost_recipe(recipe, facts, CostQuestion(market=read_market(None)))
report.cost.usd_per_million
```
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build import registry
from lmi_build.catalog.prices import (
    DEFAULT_REGION,
    ENDPOINT,
    SEARCHED,
    STUDIO,
    TRAINING,
)
from lmi_build.errors import UsageInvalid
from lmi_build.plan.alternatives import METHODS, Search, find_alternatives
from lmi_build.plan.costs import Served, engine_of, experts_of, fits, subjects_of
from lmi_build.plan.places import cost_ways, thinned
from lmi_build.plan.price_words import derived_note, price_row
from lmi_build.sizing.build_hours import build_hours
from lmi_build.sizing.cost import MONTH_HOURS, Traffic, cost
from lmi_build.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.catalog.devices import Device
    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.market import Market
    from lmi_build.catalog.prices import Price
    from lmi_build.plan.places import Way
    from lmi_build.sizing.cost import Alternative, Cost
    from lmi_build.sizing.memory import Subject
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.ranges import Range
    from lmi_build.values.recipe import QuantSpec, Recipe

_CPU = "cpu"
_MILLISECONDS = 1e3


@dataclass(frozen=True, kw_only=True, slots=True)
class CostQuestion:
    """
    What is asked about a recipe.

    Args:
        market: Instances, devices and prices.
        region: Where prices are looked up.
        instance: Instead of the recipe's target; empty for that.
        mean_input_len: In tokens; None takes the longest prompt of the bounds.
        mean_output_len: In tokens; None takes the longest answer of the bounds.
        requests_per_second: In the mean; None where it is not known.
        utilisation: Share of the time that requests take, where no rate is known.
        build_instance: Where the build runs; empty for the instance that serves.
        num_alternatives: How many cheaper ways are wanted.
        ways: Whether every place is wanted, too, for a page.
    """

    market: Market
    region: str = DEFAULT_REGION
    instance: str = ""
    mean_input_len: float | None = None
    mean_output_len: float | None = None
    requests_per_second: float | None = None
    utilisation: float | None = None
    build_instance: str = ""
    num_alternatives: int = 5
    ways: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildCost:
    """
    What the build costs, by a rule of thumb.

    Args:
        instance: Where it runs.
        hours: From nothing.
        usd: Those hours.
        price: Of one.
    """

    instance: str
    hours: Range
    usd: Range
    price: Price


@dataclass(frozen=True, kw_only=True, slots=True)
class CostReport:
    """
    What a recipe costs.

    Args:
        name: Of the recipe.
        instance: Where it is served.
        price: Of an hour of it.
        device: Its peak rates.
        traffic: What was asked for.
        cost: What that costs.
        num_copies: Copies of the model on the instance.
        batch_size: Requests of one copy at full load.
        fits: Whether it fits for certain.
        build: What the build costs; None where a number is missing.
        alternatives: Cheaper ways, the cheapest first.
        notes: What a reader must know.
        ways: Other places at the same bounds, where they were asked for.
    """

    name: str
    instance: Instance
    price: Price
    device: Device
    traffic: Traffic
    cost: Cost
    num_copies: int
    batch_size: int
    fits: bool
    build: BuildCost | None
    alternatives: tuple[Alternative, ...]
    notes: tuple[str, ...]
    ways: tuple[Way, ...] = ()


def cost_recipe(
    recipe: Recipe, facts: ModelFacts, question: CostQuestion
) -> CostReport:
    """
    What serving a recipe costs.

    Args:
        recipe: A checked recipe.
        facts: Its model, as `api.resolve` finds it.
        question: What is asked.

    Raises:
        UsageInvalid: `cost.no-instance`, `cost.no-rates`, `cost.no-price`,
            `cost.too-many-ranks`, `cost.no-length` or `cost.bad-number`.
        Unsupported: The recipe's quantizer or backend is not installed.
    """
    market = question.market
    instance = _instance(question.instance or recipe.compile.target, market)
    device = _device(instance, market)
    price = _price(instance, question)
    traffic = _traffic(recipe.bounds, question)
    spec = registry.backend(recipe.compile.backend).quantization(recipe, facts)
    subjects = subjects_of(facts, spec, METHODS, registry.quantizer)
    asked = replace(
        recipe, quantize=spec, compile=replace(recipe.compile, target=instance.name)
    )
    served = _served(asked, facts, subjects[""], instance, device)
    _refuse_many_ranks(served)
    engine = engine_of(served)
    found = cost(engine, traffic, price.usd_per_hour, utilisation=question.utilisation)
    return CostReport(
        name=recipe.name,
        instance=instance,
        price=price,
        device=device,
        traffic=traffic,
        cost=found,
        num_copies=engine.num_copies,
        batch_size=engine.batch_size,
        fits=fits(served),
        build=_build(recipe, facts, spec, instance, question),
        alternatives=find_alternatives(
            served,
            subjects,
            found,
            traffic,
            search=Search(
                market=question.market,
                region=question.region,
                utilisation=question.utilisation,
                limit=question.num_alternatives,
            ),
            backend=registry.backend,
        ),
        notes=(
            *_notes(served, price, question),
            *_refused_notes(recipe.bounds, traffic),
        ),
        ways=_ways(served, subjects, traffic, question) if question.ways else (),
    )


def _ways(
    served: Served,
    subjects: Mapping[str, Subject],
    traffic: Traffic,
    question: CostQuestion,
) -> tuple[Way, ...]:
    """Every place, the best way of each instance and format."""
    found = cost_ways(
        served,
        subjects,
        traffic,
        market=question.market,
        region=question.region,
        utilisation=question.utilisation,
    )
    return thinned(found)


def cost_lines(found: Cost) -> list[tuple[str, Range, str]]:
    """
    What a cost says, line by line: name, from and to, unit.

    Args:
        found: What was found; what is not known is left out.
    """
    speed = found.speed
    month = found.reserved_usd_per_hour.times(MONTH_HOURS)
    lines: list[tuple[str, Range | None, str]] = [
        ("first token", speed.prefill_seconds.times(_MILLISECONDS), "ms"),
        ("each further token", speed.step_seconds.times(_MILLISECONDS), "ms"),
        ("capacity", speed.requests_per_second, "requests/s an instance"),
        ("input tokens", found.usd_per_million_input, "USD/million, busy"),
        ("output tokens", found.usd_per_million_output, "USD/million, busy"),
        ("all tokens", found.usd_per_million, "USD/million, busy"),
        ("instances", found.num_instances, ""),
        ("busy", found.utilisation and found.utilisation.times(100), "% of the time"),
        ("all tokens", found.reserved_usd_per_million, "USD/million, always on"),
        ("always on", month, f"USD a month of {MONTH_HOURS} hours"),
    ]
    return [(name, ends, unit) for name, ends, unit in lines if ends is not None]


def paid_of(found: Cost) -> tuple[Range, str]:
    """
    What is compared: reserved hours where a rate is known, else tokens; with its unit.

    Args:
        found: What was found.
    """
    if found.num_instances is not None:
        return found.reserved_usd_per_hour, "USD an hour"
    return found.usd_per_million, "USD/million"


def _device(instance: Instance, market: Market) -> Device:
    """The peak rates of an instance's device."""
    found = market.device(instance)
    if found is None:
        raise UsageInvalid(
            f"the catalogue has no peak rates of `{instance.device or 'a CPU'}`, the"
            f" device of `{instance.name}`",
            code="cost.no-rates",
            hints=(f"add `[devices.{instance.rates}]` with `--catalog FILE`",),
        )
    return found


def _served(
    recipe: Recipe,
    facts: ModelFacts,
    subject: Subject,
    instance: Instance,
    device: Device,
) -> Served:
    """The recipe's model, as its backend serves it on an instance."""
    return Served(
        subject=subject,
        facts=facts,
        runtime=recipe.compile.backend,
        instance=instance,
        device=device,
        bounds=recipe.bounds,
        tensor_parallel_size=recipe.compile.tensor_parallel_size,
        recipe=recipe,
        experts=experts_of(facts),
        pipeline_parallel_size=recipe.compile.pipeline_parallel_size,
    )


def _refuse_many_ranks(served: Served) -> None:
    instance = served.instance
    if served.num_ranks > instance.num_cores:
        raise UsageInvalid(
            f"the recipe has {served.num_ranks} ranks, `{instance.name}` can be split"
            f" into {instance.num_cores}",
            code="cost.too-many-ranks",
            hints=("lower `compile.tensor_parallel_size`, or name `--instance`",),
        )


def _instance(name: str, market: Market) -> Instance:
    found = None if name == _CPU else market.instance(name)
    if found is None:
        near = did_you_mean(f"ml.{name.removeprefix('ml.')}", market.instances)
        raise UsageInvalid(
            f"the catalogue has no instance `{name}`",
            code="cost.no-instance",
            hints=(
                f"did you mean `{near}`?"
                if near
                else "name one with `--instance ml.g5.xlarge`",
            ),
        )
    return found


def _price(instance: Instance, question: CostQuestion) -> Price:
    price = question.market.price(instance, region=question.region)
    if price is None:
        known = question.market.regions(instance)
        raise UsageInvalid(
            f"no price of `{instance.name}` in `{question.region}` is known, of"
            f" SageMaker's or of EC2's; prices were last looked for on {SEARCHED}",
            code="cost.no-price",
            hints=(
                *((f"try `--region {known[0]}`",) if known else ()),
                f"add it with `--catalog FILE`: {price_row(instance, question.region)}",
            ),
        )
    return price


def _traffic(bounds: Bounds, question: CostQuestion) -> Traffic:
    output = question.mean_output_len or bounds.max_output_len
    if not output:
        raise UsageInvalid(
            "the recipe's bounds have no output, so there are no tokens to decode",
            code="cost.no-length",
            hints=("give `--mean-output-len` for a model that generates",),
        )
    try:
        return Traffic(
            mean_input_len=question.mean_input_len or bounds.max_input_len,
            mean_output_len=output,
            requests_per_second=question.requests_per_second,
        )
    except ValueError as error:
        raise UsageInvalid(
            f"the traffic makes no sense: {error}",
            code="cost.bad-number",
            hints=("lengths and requests per second are above 0",),
        ) from error


def _refused_notes(bounds: Bounds, traffic: Traffic) -> Iterator[str]:
    """What the engine would not serve, though it is priced."""
    for name, mean, most in (
        ("input", traffic.mean_input_len, bounds.max_input_len),
        ("output", traffic.mean_output_len, bounds.max_output_len),
    ):
        if most and mean > most:
            yield (
                f"the mean {name} of {mean:g} tokens is over `bounds.max_{name}_len` ="
                f" {most}: most such requests are refused; `lmi-build bounds LOG`"
                " chooses bounds"
            )


def _build(
    recipe: Recipe,
    facts: ModelFacts,
    spec: QuantSpec,
    serving: Instance,
    question: CostQuestion,
) -> BuildCost | None:
    where = serving
    if question.build_instance:
        where = _instance(question.build_instance, question.market)
    price = question.market.price(where, region=question.region, job=TRAINING)
    hours = build_hours(
        num_params=sum(fact.num_elements for fact in facts.tensors),
        num_bytes=facts.fetch_bytes,
        method=spec.method,
        backend=recipe.compile.backend,
    )
    if price is None or hours is None:
        return None
    return BuildCost(
        instance=where.name,
        hours=hours,
        usd=hours.by(price.usd_per_hour),
        price=price,
    )


def _notes(served: Served, price: Price, question: CostQuestion) -> Iterator[str]:
    if price.derived:
        yield derived_note(price, served.instance)
    elif price.job != ENDPOINT:
        of = "Studio" if price.job == STUDIO else f"a {price.job} job"
        yield (
            f"the price is that of {of}; none of an endpoint is known, and where both"
            " are they differ by cents"
        )
    if question.mean_input_len is None and question.mean_output_len is None:
        yield (
            "every request is taken to be as long as the bounds allow; `--traffic LOG`"
            " or the mean lengths make it the real ones"
        )
    if served.num_ranks > 1 and served.device.link_gbps is None:
        yield (
            f"the bandwidth of `{served.device.link}` is not known; sums over ranks are"
            " counted by their latency alone"
        )
    if not served.experts.num_experts and any(
        ".experts." in fact.name for fact in served.facts.tensors
    ):
        yield (
            "the model has experts, and its config.json does not say how many a token"
            " uses; all are counted"
        )
    if not served.device.bf16 and served.facts.dtype == "bfloat16":
        yield f"`{served.instance.device}` has no bfloat16; rates are those of float16"
