"""
What tokens cost: an hour's price, a roofline and the traffic.

In a full server every request waits for its own prefill and shares each decode step
with the others of its batch, so that it takes a machine

    prefill(T) + O * step(B, T + O / 2) / B

seconds. Used by its tokens alone, that time costs what the hour costs; reserved, the
instance costs its hour whether requests come or not. Lengths are means; a request's
cost grows no slower than its lengths, so longer bounds never cost less.

Legend: T input tokens, O output tokens, B requests of a batch.

Sources: continuous batching, Yu et al., OSDI 2022 (Orca); prefill and decode take turns
in one queue, as vLLM and TensorRT-LLM schedule them without chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.catalog.prices import SAGEMAKER
from lmi_build.sizing.roofline import (
    Decoder,
    Machine,
    decode_seconds,
    prefill_seconds,
)
from lmi_build.values.ranges import Range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MILLION = 1e6
HOUR_SECONDS = 3600
MONTH_HOURS = 730


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """
    What is asked for.

    Args:
        mean_input_len: T, tokens of a prompt in the mean.
        mean_output_len: O, tokens of an answer in the mean.
        requests_per_second: In the mean; None where it is not known.
    """

    mean_input_len: float
    mean_output_len: float
    requests_per_second: float | None = None

    def __post_init__(self) -> None:
        told = (self.mean_input_len, self.mean_output_len, self.requests_per_second)
        for number in told:
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{number} is no positive number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """
    One instance that serves.

    Args:
        decoder: The model.
        machine: The ranks of one copy of the model.
        batch_size: B of one copy at full load.
        num_copies: Copies of the model on the instance.
        num_stages: Pipeline stages of one copy; its batch is split over them.
    """

    decoder: Decoder
    machine: Machine
    batch_size: int
    num_copies: int = 1
    num_stages: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """
    How fast one instance serves a kind of traffic.

    Args:
        prefill_seconds: One prompt.
        step_seconds: One more token of every request of a full batch.
        input_seconds: Time of the whole instance that one request's prompt takes.
        output_seconds: The same for its answer.
    """

    prefill_seconds: Range
    step_seconds: Range
    input_seconds: Range
    output_seconds: Range

    @property
    def request_seconds(self) -> Range:
        """Time of the whole instance that one request takes."""
        return self.input_seconds + self.output_seconds

    @property
    def requests_per_second(self) -> Range:
        """Requests that one instance serves at full load."""
        return self.request_seconds.over(1.0)


def speed(engine: Engine, traffic: Traffic) -> Speed:
    """
    How fast an engine serves.

    Args:
        engine: One instance.
        traffic: Its mean lengths.
    """
    share = max(1.0, engine.batch_size / engine.num_stages)
    prefill = prefill_seconds(
        engine.decoder, engine.machine, num_tokens=traffic.mean_input_len
    )
    step = decode_seconds(
        engine.decoder,
        engine.machine,
        num_cached=traffic.mean_input_len + traffic.mean_output_len / 2,
        batch_size=share,
    )

    def spread(seconds: Range) -> Range:
        """At best every stage is busy; at worst one at a time."""
        best = seconds.low / (engine.num_copies * engine.num_stages)
        return Range(low=best, high=seconds.high / engine.num_copies)

    return Speed(
        prefill_seconds=prefill,
        step_seconds=step,
        input_seconds=spread(prefill),
        output_seconds=spread(step.times(traffic.mean_output_len / share)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """
    What serving costs, in USD.

    Args:
        speed: Of one instance.
        usd_per_hour: Of one instance; one number where its price was published.
        usd_per_million_input: Input tokens, paid by the time they take.
        usd_per_million_output: Output tokens, likewise.
        usd_per_million: Both together, likewise.
        num_instances: For the traffic; None where its rate is not known.
        utilisation: Share of those instances' time that requests take; None likewise.
        reserved_usd_per_hour: Of all of them; one where the rate is not known.
        reserved_usd_per_million: All tokens of the traffic, reserved; None where
            neither a rate nor a utilisation is known.
    """

    speed: Speed
    usd_per_hour: Range
    usd_per_million_input: Range
    usd_per_million_output: Range
    usd_per_million: Range
    num_instances: Range | None
    utilisation: Range | None
    reserved_usd_per_hour: Range
    reserved_usd_per_million: Range | None


def cost(
    engine: Engine,
    traffic: Traffic,
    usd_per_hour: Range,
    *,
    utilisation: float | None = None,
) -> Cost:
    """
    What an engine costs.

    Args:
        engine: One instance.
        traffic: What is asked for.
        usd_per_hour: Price of the instance.
        utilisation: Share of its time that requests take, where no rate is known.

    Raises:
        ValueError: A price or a share makes no sense.
    """
    if not 0 < usd_per_hour.low <= usd_per_hour.high < math.inf:
        raise ValueError(
            f"a price of {usd_per_hour.low} to {usd_per_hour.high} USD an hour"
        )
    if utilisation is not None and not 0 < utilisation <= 1:
        raise ValueError(f"a utilisation of {utilisation}")
    found = speed(engine, traffic)
    tokens = traffic.mean_input_len + traffic.mean_output_len
    together = _per_million(found.request_seconds, usd_per_hour, tokens)
    instances, busy = _needed(found, traffic.requests_per_second)
    reserved: Range | None = None
    if instances is not None and traffic.requests_per_second is not None:
        rate = traffic.requests_per_second * tokens * HOUR_SECONDS
        reserved = instances.by(usd_per_hour).times(MILLION / rate)
    elif utilisation is not None:
        reserved = together.times(1 / utilisation)
        busy = Range(low=utilisation, high=utilisation)
    return Cost(
        speed=found,
        usd_per_hour=usd_per_hour,
        usd_per_million_input=_per_million(
            found.input_seconds, usd_per_hour, traffic.mean_input_len
        ),
        usd_per_million_output=_per_million(
            found.output_seconds, usd_per_hour, traffic.mean_output_len
        ),
        usd_per_million=together,
        num_instances=instances,
        utilisation=busy,
        reserved_usd_per_hour=(instances or Range(low=1, high=1)).by(usd_per_hour),
        reserved_usd_per_million=reserved,
    )


def _per_million(seconds: Range, usd_per_hour: Range, tokens: float) -> Range:
    """USD for 10^6 tokens, of which so many take the seconds."""
    return seconds.by(usd_per_hour).times(MILLION / (HOUR_SECONDS * tokens))


def _needed(found: Speed, rate: float | None) -> tuple[Range | None, Range | None]:
    """Instances for a rate, and the share of their time that it takes."""
    if rate is None:
        return None, None
    load = found.request_seconds.times(rate)
    count = Range(low=max(1, math.ceil(load.low)), high=max(1, math.ceil(load.high)))
    ends = sorted((load.low / count.low, load.high / count.high))
    return count, Range(low=ends[0], high=ends[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """
    One way to serve a model.

    Args:
        instance: Where.
        tensor_parallel_size: Ranks a layer is split over.
        method: How its weights become smaller, such as `awq 4`; `as it is` for those
            of the recipe.
        max_batch_size: Requests at once.
        changes: What differs from the recipe, in words.
        price_basis: Of `catalog.prices.BASES`, what the hour's price stands on.
    """

    instance: str
    tensor_parallel_size: int
    method: str
    max_batch_size: int
    changes: tuple[str, ...] = ()
    price_basis: str = SAGEMAKER


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternative:
    """
    A cheaper way.

    Args:
        setup: What it is.
        cost: What it costs.
    """

    setup: Setup
    cost: Cost


def cheaper(
    base: Cost,
    setups: Iterable[Setup],
    *,
    fits: Callable[[Setup], bool],
    cost_of: Callable[[Setup], Cost | None],
) -> tuple[Alternative, ...]:
    """
    What fits and costs less, the cheapest first.

    Something costs less where both ends of its range do, of what is paid: the reserved
    hours where a rate is known, else the tokens, by an instance whose hour costs no
    more, again at both ends, since nobody knows that requests would fill a larger one.

    Args:
        base: What the recipe costs.
        setups: What could be done instead; their order does not matter.
        fits: Whether a setup fits for certain.
        cost_of: What one costs; None where that is not known.
    """
    was = _paid(base)
    found: list[Alternative] = []
    for setup in setups:
        price = cost_of(setup)
        if price is None:
            continue
        paid = _paid(price)
        if price.num_instances is None and _dearer(
            price.usd_per_hour, base.usd_per_hour
        ):
            continue
        if paid.low < was.low and paid.high < was.high and fits(setup):
            found.append(Alternative(setup=setup, cost=price))

    def rank(item: Alternative) -> tuple[float, float, int, str, str]:
        paid = _paid(item.cost)
        named = (len(item.setup.changes), item.setup.instance, repr(item.setup))
        return (paid.high, paid.low, *named)

    return tuple(sorted(found, key=rank))


def _dearer(hour: Range, base: Range) -> bool:
    """Whether an hour may cost more than another."""
    return hour.low > base.low or hour.high > base.high


def _paid(price: Cost) -> Range:
    if price.num_instances is not None:
        return price.reserved_usd_per_hour
    return price.usd_per_million
