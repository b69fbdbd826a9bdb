"""Laws of the roofline and of cost: ordered, monotone, blind to order."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lmi_build.catalog.market import overlay, shipped_market
from lmi_build.sizing.build_hours import build_hours
from lmi_build.sizing.cost import Cost, Engine, Setup, Traffic, cheaper, cost, speed
from lmi_build.sizing.roofline import (
    Decoder,
    Machine,
    decode_seconds,
    prefill_seconds,
)
from lmi_build.values.ranges import Range

COUNTS = st.integers(1, 64)
LENGTHS = st.integers(1, 20_000)
RATES = st.floats(0.01, 500)
DECODERS = st.builds(
    Decoder,
    num_layers=st.integers(1, 100),
    hidden_size=st.integers(64, 16384),
    attention_width=st.integers(64, 16384),
    num_active_params=st.integers(10**6, 10**11),
    weight_bytes=st.integers(10**6, 10**12),
    kv_bytes_per_token=st.floats(100, 1e7),
    expert_bytes=st.integers(0, 10**12),
    num_experts=st.sampled_from([0, 8, 64]),
    num_experts_per_token=st.integers(1, 8),
    window=st.sampled_from([0, 128, 4096]),
    sliding_share=st.floats(0, 1),
)
MACHINES = st.builds(
    Machine,
    num_ranks=st.sampled_from([1, 2, 4, 8]),
    flops_per_second=st.floats(1e13, 5e15),
    memory_bytes_per_second=st.floats(1e11, 1e13),
    link_bytes_per_second=st.none() | st.floats(1e10, 1e12),
)
ENGINES = st.builds(
    Engine,
    decoder=DECODERS,
    machine=MACHINES,
    batch_size=st.integers(1, 512),
    num_copies=st.integers(1, 8),
    num_stages=st.integers(1, 4),
)
TRAFFICS = st.builds(
    Traffic,
    mean_input_len=LENGTHS,
    mean_output_len=LENGTHS,
    requests_per_second=st.none() | RATES,
)
PRICES = st.floats(0.01, 200).map(lambda usd: Range(low=usd, high=usd))
# Sums in another order differ in their last bits.
SLACK = 1 - 1e-9


def ranges(found: Cost) -> list[Range]:
    """Every range of a cost."""
    told = [
        found.speed.prefill_seconds,
        found.speed.step_seconds,
        found.speed.request_seconds,
        found.speed.requests_per_second,
        found.usd_per_million_input,
        found.usd_per_million_output,
        found.usd_per_million,
        found.num_instances,
        found.utilisation,
        found.reserved_usd_per_hour,
        found.reserved_usd_per_million,
    ]
    return [each for each in told if each is not None]


@given(ENGINES, TRAFFICS, PRICES)
def test_ranges_are_ordered_and_finite(
    engine: Engine, traffic: Traffic, price: Range
) -> None:
    for each in ranges(cost(engine, traffic, price)):
        assert 0 < each.low <= each.high < math.inf


@given(ENGINES, TRAFFICS, st.floats(1, 4), st.floats(1, 4), PRICES)
def test_more_tokens_never_cost_less(
    engine: Engine, traffic: Traffic, longer: float, wordier: float, price: Range
) -> None:
    """A request with a longer prompt or answer takes no less time, so no less money."""
    more = replace(
        traffic,
        mean_input_len=traffic.mean_input_len * longer,
        mean_output_len=traffic.mean_output_len * wordier,
    )
    short, long = speed(engine, traffic), speed(engine, more)

    assert long.request_seconds.low >= short.request_seconds.low * SLACK
    assert long.request_seconds.high >= short.request_seconds.high * SLACK
    few, many = cost(engine, traffic, price), cost(engine, more, price)
    assert many.reserved_usd_per_hour.low >= few.reserved_usd_per_hour.low
    assert many.reserved_usd_per_hour.high >= few.reserved_usd_per_hour.high


@given(ENGINES, TRAFFICS, PRICES, st.floats(0.01, 1))
def test_a_cheaper_hour_never_makes_it_dearer(
    engine: Engine, traffic: Traffic, price: Range, discount: float
) -> None:
    full, less = (
        cost(engine, traffic, price),
        cost(engine, traffic, price.times(discount)),
    )

    for high, low in zip(ranges(full), ranges(less), strict=True):
        assert low.low <= high.low / SLACK
        assert low.high <= high.high / SLACK
    assert less.num_instances == full.num_instances


@given(ENGINES, TRAFFICS, RATES, st.floats(1, 5), PRICES)
def test_more_requests_need_no_fewer_instances(
    engine: Engine, traffic: Traffic, rate: float, factor: float, price: Range
) -> None:
    few = cost(engine, replace(traffic, requests_per_second=rate), price)
    many = cost(engine, replace(traffic, requests_per_second=rate * factor), price)

    assert few.num_instances is not None
    assert many.num_instances is not None
    assert many.num_instances.low >= few.num_instances.low
    assert many.num_instances.high >= few.num_instances.high
    assert few.utilisation is not None
    assert few.utilisation.high <= 1


@given(ENGINES, TRAFFICS, PRICES, st.floats(0.01, 1))
def test_reserving_never_costs_less_than_using(
    engine: Engine, traffic: Traffic, price: Range, share: float
) -> None:
    idle = replace(traffic, requests_per_second=None)
    found = cost(engine, idle, price, utilisation=share)

    assert found.reserved_usd_per_million is not None
    assert found.reserved_usd_per_million.low >= found.usd_per_million.low * SLACK
    busy = cost(engine, idle, price, utilisation=1)
    assert busy.reserved_usd_per_million == busy.usd_per_million


@given(DECODERS, MACHINES, st.integers(1, 4096), COUNTS, st.integers(1, 8))
def test_a_larger_batch_takes_longer_but_less_for_each(
    decoder: Decoder, machine: Machine, cached: int, batch: int, factor: int
) -> None:
    small = decode_seconds(decoder, machine, num_cached=cached, batch_size=batch)
    large = decode_seconds(
        decoder, machine, num_cached=cached, batch_size=batch * factor
    )

    assert large.low >= small.low * SLACK
    assert large.high >= small.high * SLACK
    assert large.low / factor <= small.low / SLACK
    assert large.high / factor <= small.high / SLACK


@given(DECODERS, MACHINES, LENGTHS, st.floats(1, 10))
def test_a_faster_device_is_never_slower(
    decoder: Decoder, machine: Machine, length: int, factor: float
) -> None:
    for name in ("flops_per_second", "memory_bytes_per_second"):
        faster = replace(machine, **{name: getattr(machine, name) * factor})
        slow = prefill_seconds(decoder, machine, num_tokens=length)
        fast = prefill_seconds(decoder, faster, num_tokens=length)
        assert fast.low <= slow.low / SLACK
        assert fast.high <= slow.high / SLACK


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 100)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_alternatives_fit_are_cheaper_and_ignore_order(
    drawn: list[tuple[int, int]], random: object
) -> None:
    """Only what fits and is cheaper at both ends is told, the cheapest first."""
    decoder = Decoder(
        num_layers=2,
        hidden_size=64,
        attention_width=64,
        num_active_params=10**7,
        weight_bytes=10**7,
        kv_bytes_per_token=100,
    )
    machine = Machine(num_ranks=1, flops_per_second=1e14, memory_bytes_per_second=1e12)
    engine = Engine(decoder=decoder, machine=machine, batch_size=4)
    traffic = Traffic(mean_input_len=100, mean_output_len=100)
    setups = {
        Setup(
            instance=f"ml.x{index}",
            tensor_parallel_size=1,
            method="as it is",
            max_batch_size=1,
        ): price
        for index, price in drawn
    }
    base = cost(engine, traffic, Range(low=50, high=50))

    def found(order: list[Setup]) -> list[tuple[str, float]]:
        kept = cheaper(
            base,
            order,
            fits=lambda setup: not setup.instance.endswith("3"),
            cost_of=lambda setup: (
                None
                if setup.instance.endswith("5")
                else cost(engine, traffic, Range(low=setups[setup], high=setups[setup]))
            ),
        )
        return [(item.setup.instance, item.cost.usd_per_hour.low) for item in kept]

    order = sorted(setups, key=lambda setup: setup.instance)
    once = found(order)
    assert found(order[::-1]) == once
    prices = [price for _, price in once]
    assert prices == sorted(prices)
    wanted = {
        setup.instance
        for setup, price in setups.items()
        if price < 50 and setup.instance[-1] not in "35"
    }
    assert {name for name, _ in once} == wanted


@given(
    st.sampled_from(["none", "rtn", "gptq", "awq", "smoothquant", "int8", "fp8"]),
    st.sampled_from(["tensorrt-llm", "neuronx", "onnxruntime"]),
    st.integers(1, 10**12),
    st.integers(1, 10**13),
)
def test_a_larger_build_takes_no_less(
    method: str, backend: str, num_params: int, num_bytes: int
) -> None:
    def hours(factor: int) -> Range:
        found = build_hours(
            num_params=num_params * factor,
            num_bytes=num_bytes * factor,
            method=method,
            backend=backend,
        )
        assert found is not None
        return found

    assert hours(1).low <= hours(2).low
    assert hours(1).high <= hours(2).high


@given(st.floats(0.01, 1000), st.sampled_from(["us-east-1", "eu-west-3"]))
def test_a_users_price_is_the_one_that_counts(number: float, region: str) -> None:
    text = (
        f'[prices.mine]\nregion = "{region}"\njobs = ["endpoint"]\nsource = "us"\n'
        f'checked = "2026-10-01"\nusd_per_hour = {{ "g5.xlarge" = {number!r} }}\n'
    )
    base = shipped_market()
    market = overlay(base, text, "mine.toml")
    price = market.price(market.instances["ml.g5.xlarge"], region=region)

    assert price is not None
    assert price.usd_per_hour == Range(low=number, high=number)
    assert not price.derived
    for other in market.instances.values():
        if other.name != "ml.g5.xlarge":
            assert market.price(other, region=region) == base.price(
                other, region=region
            )
