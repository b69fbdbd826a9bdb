"""
Cheaper ways to serve a recipe's model: every one is tried, and counted.

Other instances, numbers of ranks, number formats and batches; those stay that cost
less, that fit for certain, and that their backend would build.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.tnx_models import tnx_models
from lmi_build.catalog.instances import instances
from lmi_build.catalog.prices import CAPACITY_BLOCK
from lmi_build.plan.costs import NEURONX, Served, engine_of, fits, is_buildable
from lmi_build.sizing.cost import Alternative, Cost, Setup, cheaper, cost
from lmi_build.values.recipe import COMPILER, CompileSpec, QuantSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.market import Market
    from lmi_build.catalog.prices import Price
    from lmi_build.sizing.cost import Traffic
    from lmi_build.sizing.memory import Subject
    from lmi_build.spi import Backend
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe

_NEURON = "neuron"
AS_IT_IS = "as it is"
# What a float model could be instead; int8 is of weights alone.
METHODS = (
    ("unquantized", QuantSpec()),
    ("awq, 4 bits", QuantSpec(method="awq", bits=4, group_size=128, sym=False)),
    ("int8 weights", QuantSpec(method="int8", bits=8)),
    ("fp8", QuantSpec(method="fp8", bits=8, activations="dynamic")),
)
_NEURON_METHODS = ("unquantized", "int8 weights")
_FP8_CAPABILITY = 8.9
_BATCH_PARTS = (1, 2, 4, 8)
_RANKS = (1, 2, 4, 8, 12, 16, 24, 32)
_BACKENDS = {"gpu": "vllm", _NEURON: NEURONX}
# Runtimes that a backend of ours builds for.
BUILT_BY = ("tensorrt-llm", NEURONX, "vllm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """
    Where and how far to look.

    Args:
        market: Instances, devices and prices.
        region: Where prices are looked up.
        utilisation: Share of the time that requests take, where no rate is known.
        limit: Instances that are wanted at most.
    """

    market: Market
    region: str
    utilisation: float | None
    limit: int


def find_alternatives(
    served: Served,
    subjects: Mapping[str, Subject],
    base: Cost,
    traffic: Traffic,
    *,
    search: Search,
    backend: Callable[[str], Backend],
) -> tuple[Alternative, ...]:
    """
    The cheapest way of each instance that is cheaper than the recipe.

    Args:
        served: The recipe.
        subjects: Its model by number format, as `costs.subjects_of` gives it.
        base: What the recipe costs.
        traffic: What is asked for.
        search: Where and how far to look.
        backend: Finds a backend by name.
    """
    # What is bought ahead by the day is no cheaper way to rent by the hour.
    ways: dict[Setup, tuple[Served, Price]] = {
        setup: (other, price)
        for setup, other, price in setups(
            served, subjects, search.market, search.region
        )
        if price.basis != CAPACITY_BLOCK or other.instance == served.instance
    }

    def cost_of(setup: Setup) -> Cost:
        other, price = ways[setup]
        return cost(
            engine_of(other),
            traffic,
            price.usd_per_hour,
            utilisation=search.utilisation,
        )

    ranked = cheaper(
        base, ways, fits=lambda setup: fits(ways[setup][0]), cost_of=cost_of
    )
    best: dict[str, Alternative] = {}
    # Asking a backend takes milliseconds, so it is asked last, and once for each kind.
    answers: dict[tuple[str, str, int, str, int], bool] = {}
    for item in ranked:
        if len(best) == search.limit:
            break
        name, other = item.setup.instance, ways[item.setup][0]
        if name in best:
            continue
        kind = _kind(item.setup, other)
        if kind not in answers:
            answers[kind] = _is_built(other, backend)
        if answers[kind]:
            best[name] = item
    return tuple(best.values())


def _kind(setup: Setup, served: Served) -> tuple[str, str, int, str, int]:
    """What a backend's answer depends on: of GPUs the device, of others the machine."""
    instance = served.instance
    place = instance.name if instance.accelerator == _NEURON else instance.rates
    ranks, batch = setup.tensor_parallel_size, setup.max_batch_size
    return served.runtime, place, ranks, setup.method, batch


def _is_built(served: Served, backend: Callable[[str], Backend]) -> bool:
    """Whether a backend builds it; of a user's own instance it knows nothing."""
    if served.runtime not in BUILT_BY or served.instance.name not in instances():
        return True
    return is_buildable(served, backend(served.runtime))


def setups(
    served: Served,
    subjects: Mapping[str, Subject],
    market: Market,
    region: str,
    *,
    parts: tuple[int, ...] = _BATCH_PARTS,
) -> Iterator[tuple[Setup, Served, Price]]:
    """
    Yield every way that could be tried, with its price.

    Args:
        served: The recipe.
        subjects: Its model by number format.
        market: Instances, devices and prices.
        region: Of the prices.
        parts: What the recipe's batch is divided by.
    """
    heads = served.facts.geometry.num_attention_heads
    for instance in market.instances.values():
        device = market.device(instance)
        price = market.price(instance, region=region)
        if device is None or price is None or "endpoint" not in instance.uses:
            continue
        same = instance.accelerator == served.instance.accelerator
        if instance.accelerator == _NEURON and not _compiles(served.facts):
            continue
        runtime = served.runtime if same else _BACKENDS[instance.accelerator]
        for ranks in _RANKS:
            if ranks > instance.num_cores or heads % ranks:
                continue
            for name, subject in subjects.items():
                if not _can(name, instance, served):
                    continue
                for part in parts:
                    bounds = _smaller(served.bounds, part)
                    other = replace(
                        served,
                        subject=subject,
                        instance=instance,
                        device=device,
                        runtime=runtime,
                        bounds=bounds,
                        tensor_parallel_size=ranks,
                        pipeline_parallel_size=1,
                        recipe=_recipe(served, instance, runtime, ranks, name, bounds),
                    )
                    yield _setup(served, other, name, price), other, price


def _recipe(
    served: Served,
    instance: Instance,
    runtime: str,
    ranks: int,
    method: str,
    bounds: Bounds,
) -> Recipe:
    """The recipe that would be written for a way; options stay with their backend."""
    old = served.recipe
    same = runtime == served.runtime
    compiled = old.compile if same else CompileSpec(backend=runtime)
    spec = dict(METHODS)[method] if method else old.quantize
    if runtime == NEURONX and spec.method == "int8":
        spec = replace(spec, provider=COMPILER)
    return replace(
        old,
        bounds=bounds,
        quantize=spec,
        compile=replace(
            compiled,
            target=instance.name,
            tensor_parallel_size=ranks,
            pipeline_parallel_size=1,
        ),
    )


def _compiles(facts: ModelFacts) -> bool:
    """Whether Transformers NeuronX has a model of this architecture."""
    return facts.geometry.model_type in tnx_models()


def _can(method: str, instance: Instance, served: Served) -> bool:
    """Whether a device runs a number format; what is packed stays on its kind."""
    packed = served.subject.scheme.packing != "none"
    if not method:
        return not packed or instance.accelerator == served.instance.accelerator
    if instance.accelerator == _NEURON:
        return method in _NEURON_METHODS
    return method != "fp8" or float(instance.compute_capability) >= _FP8_CAPABILITY


def _smaller(bounds: Bounds, part: int) -> Bounds:
    return replace(bounds, max_batch_size=max(1, bounds.max_batch_size // part))


def _setup(served: Served, other: Served, method: str, price: Price) -> Setup:
    """A way in words: what differs from the recipe."""
    batch = other.bounds.max_batch_size
    changes = []
    if other.instance.name != served.instance.name:
        changes.append(f"on {other.instance.name}")
    if other.runtime != served.runtime:
        changes.append(f"by {other.runtime}")
    if method:
        changes.append(method)
    if other.tensor_parallel_size != served.num_ranks:
        changes.append(f"tensor_parallel_size {other.tensor_parallel_size}")
    if batch != served.bounds.max_batch_size:
        changes.append(f"max_batch_size {batch}")
    return Setup(
        instance=other.instance.name,
        tensor_parallel_size=other.tensor_parallel_size,
        method=method or AS_IT_IS,
        max_batch_size=batch,
        changes=tuple(changes),
        price_basis=price.basis,
    )
