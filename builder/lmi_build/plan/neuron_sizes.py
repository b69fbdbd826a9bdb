"""
The memory of a NeuronCore, as the backend counts it, in the words of `sizing`.

Weights and the cache of Transformers NeuronX are counted tensor by tensor with its
padding and replication; graphs and intermediate results are a rule of thumb there, and
an interval here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.encoders import is_encoder
from lmi_build.backends.neuronx.loader_tnx import tnx_request
from lmi_build.backends.neuronx.loaders import Request
from lmi_build.backends.neuronx.target import find_target
from lmi_build.backends.neuronx.tnx_request import tnx_core_memory
from lmi_build.catalog.runtimes import Interval
from lmi_build.sizing.change import BOUND_PATHS, Change, lowered
from lmi_build.sizing.fit import FitReport, Largest, largest_by
from lmi_build.sizing.memory import MemoryLine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.neuronx.memory import CoreMemory
    from lmi_build.sizing.fit import Place
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe

# The backend's rule was chosen by one measurement of eight graphs of a 7B model
# (aws-neuron/transformers-neuronx#45), so it may be wrong by a factor.
_LOW, _HIGH = 0.5, 2.0


def loader_of(recipe: Recipe, facts: ModelFacts) -> str:
    """The library that loads a recipe's model, such as `tnx`."""
    return find_target(recipe.compile, encoder=is_encoder(facts.config)).loader


def neuron_fit(recipe: Recipe, facts: ModelFacts, place: Place) -> FitReport:
    """
    Hold a decoder of Transformers NeuronX against one core.

    Args:
        recipe: Its loader is `tnx`, and its backend finds nothing wrong with it.
        facts: The model.
        place: Its capacity is that of one core.
    """
    target = find_target(recipe.compile, encoder=is_encoder(facts.config))
    request = Request(recipe=recipe, model=facts, target=target)
    core = tnx_core_memory(tnx_request(request))
    return FitReport(lines=tuple(_lines(core)), capacity=place.capacity)


def neuron_largest(
    question: str, recipe: Recipe, facts: ModelFacts, place: Place
) -> Largest:
    """
    The largest value of one bound on one core, as the backend counts.

    Args:
        question: `batch`, `input` or `output`.
        recipe: As for `neuron_fit`.
        facts: The model.
        place: Its capacity is that of one core, and known.
    """

    def need(bounds: Bounds) -> Interval:
        return neuron_fit(replace(recipe, bounds=bounds), facts, place).total

    return largest_by(
        question,
        need,
        recipe.bounds,
        place,
        positions=facts.geometry.max_tokens,
    )


def neuron_changes(recipe: Recipe, facts: ModelFacts, place: Place) -> Iterator[Change]:
    """
    Bounds with which it fits for certain.

    Args:
        recipe: As for `neuron_fit`; it does not fit for certain.
        facts: The model.
        place: Its capacity is that of one core, and known.
    """
    for question, path in BOUND_PATHS.items():
        found = neuron_largest(question, recipe, facts, place).certain
        now = getattr(recipe.bounds, path.removeprefix("bounds."))
        if 0 < found < now:
            yield lowered(path, now, found)


def _lines(core: CoreMemory) -> Iterator[MemoryLine]:
    for name, size in (
        ("weights: attention", core.attention_bytes),
        ("weights: mlp", core.mlp_bytes),
        ("weights: head", core.vocabulary_bytes),
        ("weights: norm", core.norm_bytes),
        ("key-value cache", core.cache_bytes),
    ):
        yield MemoryLine(
            name=name,
            bytes=Interval(low=size, high=size),
            formula="padded, replicated and sharded as the library does",
            source="transformers-neuronx 0.10 to 0.13, decoder.py",
        )
    scratch = core.scratch_bytes
    yield MemoryLine(
        name="graphs and results",
        bytes=Interval(low=int(scratch * _LOW), high=int(scratch * _HIGH)),
        formula=f"1/16 of the weights for each graph + one layer, x {_LOW} to {_HIGH}",
        source="rule of thumb",
    )
