"""
A model in every place that its kind of device has: what is left, and what it costs.

Each way is an instance, a number of ranks and a number format. The front are those that
no other way beats in both money and margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.catalog.prices import SAGEMAKER
from lmi_build.plan.alternatives import AS_IT_IS, setups
from lmi_build.plan.costs import engine_of, fit_of
from lmi_build.plan.sizes import place_of, splits
from lmi_build.sizing.cost import cost
from lmi_build.sizing.fit import CANNOT, FITS, fit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.market import Market
    from lmi_build.plan.costs import Served
    from lmi_build.plan.sizes import SizeReport
    from lmi_build.sizing.cost import Traffic
    from lmi_build.sizing.fit import FitReport
    from lmi_build.sizing.memory import Subject
    from lmi_build.values.ranges import Range

AS_ASKED = "as asked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """
    One way to serve a model.

    Args:
        instance: Where.
        device: Of it.
        num_devices: Of it.
        tensor_parallel_size: Ranks a layer is split over.
        method: How the weights become smaller; `AS_IT_IS` for those that are asked of.
        verdict: Whether it fits.
        margin_bytes: What a device has left at worst; negative where it is missing.
        margin_share: The same as a share of what a device has.
        paid: What is compared, in USD: hours or tokens.
        asked: Whether it is what was asked about.
        price_basis: Of `catalog.prices.BASES`, what the instance's price stands on.
    """

    instance: str
    device: str
    num_devices: int
    tensor_parallel_size: int
    method: str
    verdict: str
    margin_bytes: int
    margin_share: float
    paid: Range
    asked: bool = False
    price_basis: str = SAGEMAKER


def size_ways(
    report: SizeReport, forms: Mapping[str, Subject], market: Market, region: str
) -> Iterator[Way]:
    """
    Every way to hold a sized model, priced by the hour of its instance.

    Args:
        report: The model and its bounds; its instance says the kind of device.
        forms: Other forms of the model by name.
        market: Instances and prices.
        region: Of the prices.
    """
    here, place = report.instance, report.place
    if here is None:
        return
    for instance in market.instances.values():
        price = market.price(instance, region=region)
        if instance.accelerator != here.accelerator or price is None:
            continue
        for tp in splits(instance, report.subject.table.heads.num_heads, place.pp):
            where = place_of(instance, place.runtime, tp=tp, pp=place.pp)
            for name, subject in ((AS_ASKED, report.subject), *forms.items()):
                same = (instance.name, tp, name) == (here.name, place.tp, AS_ASKED)
                yield from way(
                    instance,
                    tp,
                    name,
                    fit(subject, report.bounds, where),
                    paid=price.usd_per_hour,
                    asked=same,
                    price_basis=price.basis,
                )


def cost_ways(
    served: Served,
    subjects: Mapping[str, Subject],
    traffic: Traffic,
    *,
    market: Market,
    region: str,
    utilisation: float | None,
) -> Iterator[Way]:
    """
    Every way to serve a recipe's model at its bounds, priced by what is paid.

    With a rate that is the reserved hours, else the tokens.

    Args:
        served: The recipe.
        subjects: Its model by number format, as `costs.subjects_of` gives it.
        traffic: What is asked for.
        market: Instances, devices and prices.
        region: Of the prices.
        utilisation: Share of the time that requests take, where no rate is known.
    """
    for setup, other, price in setups(served, subjects, market, region, parts=(1,)):
        engine = engine_of(other)
        found = cost(engine, traffic, price.usd_per_hour, utilisation=utilisation)
        by_hour = found.num_instances is not None
        same = (other.instance.name, other.num_ranks) == (
            served.instance.name,
            served.num_ranks,
        )
        yield from way(
            other.instance,
            setup.tensor_parallel_size,
            AS_ASKED if setup.method == AS_IT_IS else setup.method,
            fit_of(other),
            paid=found.reserved_usd_per_hour if by_hour else found.usd_per_million,
            asked=same and setup.method == AS_IT_IS,
            price_basis=price.basis,
        )


def way(
    instance: Instance,
    tp: int,
    method: str,
    found: FitReport,
    *,
    paid: Range,
    asked: bool,
    price_basis: str,
) -> Iterator[Way]:
    """
    A way, unless it cannot fit.

    Args:
        instance: Where.
        tp: Ranks that a layer is split over.
        method: How the weights become smaller.
        found: The verdict there.
        paid: What is compared.
        asked: Whether it is what was asked about.
        price_basis: What the instance's price stands on.
    """
    margin, capacity = found.margin_bytes, found.capacity
    if capacity is None or margin is None or found.verdict == CANNOT:
        return
    yield Way(
        instance=instance.name,
        device=instance.device,
        num_devices=instance.num_devices,
        tensor_parallel_size=tp,
        method=method,
        verdict=found.verdict,
        margin_bytes=margin[0],
        margin_share=margin[0] / capacity.low,
        paid=paid,
        asked=asked,
        price_basis=price_basis,
    )


def front(ways: Iterable[Way]) -> tuple[Way, ...]:
    """
    Ways that fit for certain and that no other beats, the cheapest first.

    Of two ways that cost the same and leave the same, one stands for both.

    Args:
        ways: In any order.
    """
    certain = (way for way in ways if way.verdict == FITS)
    found: list[Way] = []
    for way in sorted(certain, key=_rank):
        if not found or way.margin_share > found[-1].margin_share:
            found.append(way)
    return tuple(found)


def _rank(way: Way) -> tuple[float, float, float, str, str, int]:
    """Cheap first, then with much left; names decide between equals."""
    named = (way.instance, way.method, way.tensor_parallel_size)
    return (way.paid.high, -way.margin_share, way.paid.low, *named)


def thinned(ways: Iterable[Way]) -> tuple[Way, ...]:
    """
    The best way of each instance and format, those asked about, and the front.

    Args:
        ways: In any order.
    """
    every = sorted(ways, key=_rank)
    best: dict[tuple[str, str], Way] = {}
    for way in sorted(every, key=lambda way: way.verdict != FITS):
        best.setdefault((way.instance, way.method), way)
    kept = {*best.values(), *front(every), *(way for way in every if way.asked)}
    return tuple(way for way in every if way in kept)
