"""Where else a recipe for Neuron cores fits, as their backend counts, and its price."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.topology import legal_sizes
from lmi_build.plan.neuron_sizes import loader_of, neuron_fit
from lmi_build.plan.places import AS_ASKED, way
from lmi_build.plan.sizes import float_scheme, place_of
from lmi_build.sizing.fit import fit
from lmi_build.values.recipe import COMPILER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.catalog.market import Market
    from lmi_build.plan.places import Way
    from lmi_build.plan.sizes import SizeReport
    from lmi_build.spi import Backend
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe


def neuron_model_ways(report: SizeReport, market: Market, region: str) -> Iterator[Way]:
    """
    A model without a recipe on every Neuron instance, by the hour.

    Ranks are those that the library takes and that heads divide over; without a recipe
    no backend says whether it builds the model there.

    Args:
        report: The model and its bounds.
        market: Instances and prices.
        region: Of the prices.
    """
    here, place = report.instance, report.place
    heads = report.subject.table.heads.num_heads
    for instance in market.instances.values():
        price = market.price(instance, region=region)
        if instance.accelerator != "neuron" or price is None:
            continue
        for tp in legal_sizes(instance):
            if heads % tp:
                continue
            where = place_of(instance, place.runtime, tp=tp, pp=place.pp)
            yield from way(
                instance,
                tp,
                AS_ASKED,
                fit(report.subject, report.bounds, where),
                paid=price.usd_per_hour,
                asked=(instance, tp) == (here, place.tp),
                price_basis=price.basis,
            )


def neuron_ways(
    report: SizeReport,
    recipe: Recipe,
    facts: ModelFacts,
    *,
    market: Market,
    region: str,
    backend: Backend,
) -> Iterator[Way]:
    """
    The same recipe on every Neuron instance and legal number of cores, by the hour.

    What the backend finds something wrong with is left out, and so are number formats
    that were not asked for: a recipe says how its cores hold the weights.

    Args:
        report: The recipe's own.
        recipe: Its backend is `neuronx`.
        facts: The model.
        market: Instances and prices.
        region: Of the prices.
        backend: `neuronx`.
    """
    here, place = report.instance, report.place
    by_compiler = recipe.quantize.provider == COMPILER
    scheme = float_scheme(facts) if by_compiler else report.subject.scheme
    for instance in market.instances.values():
        price = market.price(instance, region=region)
        if instance.accelerator != "neuron" or price is None:
            continue
        for tp in legal_sizes(instance):
            compiled = replace(
                recipe.compile, target=instance.name, tensor_parallel_size=tp
            )
            other = replace(recipe, compile=compiled)
            if [*backend.check(other, facts, scheme)]:
                continue
            where = place_of(instance, place.runtime, tp=tp, pp=place.pp)
            counted = loader_of(other, facts) == "tnx"
            yield from way(
                instance,
                tp,
                AS_ASKED,
                neuron_fit(other, facts, where)
                if counted
                else fit(report.subject, report.bounds, where),
                paid=price.usd_per_hour,
                asked=(instance, tp) == (here, place.tp),
                price_basis=price.basis,
            )
