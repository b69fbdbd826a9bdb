"""
The cost of a recipe's model, and of other ways to serve it, from headers alone.

The bridge between what providers know (which linears a method rounds), what the
catalogue knows (rates, prices) and the plain arithmetic of `sizing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.catalog.instances import instances
from lmi_build.catalog.runtimes import runtimes
from lmi_build.plan.neuron_sizes import loader_of, neuron_fit
from lmi_build.plan.sizes import float_scheme, place_of, subject_of
from lmi_build.sizing.cost import Engine
from lmi_build.sizing.fit import FITS, fit
from lmi_build.sizing.roofline import Decoder, Machine
from lmi_build.sizing.weights import rank_bytes
from lmi_build.values.recipe import COMPILER

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmi_build.catalog.devices import Device
    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.sizing.fit import FitReport
    from lmi_build.sizing.memory import Subject
    from lmi_build.spi import Backend, Quantizer
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec, Recipe

_BYTE_BITS = 8
# Whose memory stands for a runtime's that sizing does not know.
_LIKE = "vllm"
NEURONX = "neuronx"


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """
    Experts of a model; all numbers are 0 without any.

    Args:
        num_experts: In each layer.
        num_per_token: Of them, what one token is sent to.
        share: Their share of the model's weights.
    """

    num_experts: int
    num_per_token: int
    share: float


def experts_of(facts: ModelFacts) -> Experts:
    """The experts of a model, by its configuration and its tensors' names."""
    many = _count(facts, "num_local_experts", "num_experts", "n_routed_experts")
    few = _count(facts, "num_experts_per_tok", "num_experts_per_token", "moe_top_k")
    own = sum(fact.num_elements for fact in facts.tensors if ".experts." in fact.name)
    if not own or not 0 < few <= many:
        return Experts(num_experts=0, num_per_token=0, share=0.0)
    total = sum(fact.num_elements for fact in facts.tensors)
    return Experts(num_experts=many, num_per_token=few, share=own / total)


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """
    A model as it is served, and where.

    Args:
        subject: Its weights and cache.
        facts: What its files say.
        runtime: Who serves it.
        instance: The machine.
        device: Peak rates of one of its devices.
        bounds: What is served.
        tensor_parallel_size: Ranks a layer is split over.
        recipe: What is built; of another way, the recipe that would be written.
        experts: Of the model, from `experts_of`.
        pipeline_parallel_size: Ranks the layers are split over.
    """

    subject: Subject
    facts: ModelFacts
    runtime: str
    instance: Instance
    device: Device
    bounds: Bounds
    tensor_parallel_size: int
    recipe: Recipe
    experts: Experts
    pipeline_parallel_size: int = 1

    @property
    def num_ranks(self) -> int:
        """Cores that one copy of the model takes."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


def runtime_of(name: str) -> Runtime:
    """How a runtime lays weights out; vLLM's way for those that are not known."""
    return runtimes().get(name, runtimes()[_LIKE])


def product_of(subject: Subject) -> str:
    """Type of the products that most operations are."""
    scheme = subject.scheme
    if scheme.activation_bits != _BYTE_BITS:
        return "fp16"
    return "fp8" if scheme.activation_dtype == "float" else "int8"


def engine_of(served: Served) -> Engine:
    """One instance that serves a model at its full batch."""
    cores = served.instance.cores_per_device
    device = served.device
    link = device.link_bytes_per_second
    return Engine(
        decoder=decoder_of(served),
        machine=Machine(
            num_ranks=served.tensor_parallel_size,
            flops_per_second=device.flops_per_second(product_of(served.subject))
            / cores,
            memory_bytes_per_second=device.memory_bytes_per_second / cores,
            link_bytes_per_second=None if link is None else link / cores,
        ),
        batch_size=served.bounds.max_batch_size,
        num_copies=max(1, served.instance.num_cores // served.num_ranks),
        num_stages=served.pipeline_parallel_size,
    )


def decoder_of(served: Served) -> Decoder:
    """What a pass computes and reads; all ranks together."""
    subject, facts = served.subject, served.facts
    geometry, table, tp = facts.geometry, subject.table, served.tensor_parallel_size
    runtime = runtime_of(served.runtime)
    # An embedding that is also the head is read once, whoever holds copies of it.
    shared = (item for item in table.classes if item.part == "embedding")
    read = sum(
        rank_bytes(item, table, subject.scheme, runtime, tp) * tp
        for item in table.classes
        if item.part != "embedding"
    ) + sum(
        rank_bytes(item, table, subject.scheme, runtime, 1)
        for item in shared
        if table.tied
    )
    experts = served.experts
    cache = subject.cache
    layers = cache.num_full + cache.num_sliding
    values = cache.token_layer_values(runtime, tp).low * tp
    return Decoder(
        num_layers=geometry.num_layers,
        hidden_size=geometry.hidden_size,
        attention_width=geometry.num_attention_heads * geometry.head_dim,
        num_active_params=_active_params(served, experts),
        weight_bytes=round(read * (1 - experts.share)),
        kv_bytes_per_token=layers * values * _cache_bytes(subject),
        expert_bytes=round(read * experts.share),
        num_experts=experts.num_experts,
        num_experts_per_token=experts.num_per_token,
        window=cache.window,
        sliding_share=cache.num_sliding / layers if layers else 0.0,
    )


def _cache_bytes(subject: Subject) -> int:
    """Bytes of one number of the cache."""
    return 2 if subject.scheme.kv_cache_dtype == "auto" else 1


def _count(facts: ModelFacts, *names: str) -> int:
    for name in names:
        value = facts.config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _active_params(served: Served, experts: Experts) -> int:
    """Weights that a token is multiplied with; packed ones are counted by geometry."""
    facts, table = served.facts, served.subject.table
    if "quantization_config" in facts.config:
        return _by_geometry(facts)
    counted = 0
    for item in table.classes:
        if len(item.shape) > 1 and (item.part != "embedding" or table.tied):
            size = item.count
            for length in item.shape:
                size *= length
            counted += size
    if experts.num_experts:
        idle = 1 - experts.num_per_token / experts.num_experts
        counted -= round(counted * experts.share * idle)
    return counted


def _by_geometry(facts: ModelFacts) -> int:
    sizes = facts.geometry
    heads = 2 * (sizes.num_attention_heads + sizes.num_key_value_heads)
    layer = sizes.hidden_size * (heads * sizes.head_dim + 3 * sizes.intermediate_size)
    return sizes.num_layers * layer + sizes.hidden_size * sizes.vocab_size


def fits(served: Served) -> bool:
    """Whether a model fits for certain, at its bounds; see `fit_of`."""
    return fit_of(served).verdict == FITS


def fit_of(served: Served) -> FitReport:
    """
    Hold a model against its place, at its bounds.

    Cores of Transformers NeuronX are counted by their backend; a runtime that sizing
    does not know fits where vLLM would.
    """
    place = place_of(
        served.instance,
        runtime_of(served.runtime),
        tp=served.tensor_parallel_size,
        pp=served.pipeline_parallel_size,
    )
    counted = served.runtime == NEURONX and served.instance.name in instances()
    if counted and loader_of(served.recipe, served.facts) == "tnx":
        return neuron_fit(served.recipe, served.facts, place)
    return fit(served.subject, served.bounds, place)


def is_buildable(served: Served, backend: Backend) -> bool:
    """
    Whether a backend finds nothing wrong with a recipe.

    Args:
        served: Its recipe says how the weights become smaller.
        backend: Of that recipe.
    """
    scheme = served.subject.scheme
    if served.recipe.quantize.provider == COMPILER:
        scheme = float_scheme(served.facts)
    return not [*backend.check(served.recipe, served.facts, scheme)]


def subjects_of(
    facts: ModelFacts,
    spec: QuantSpec,
    others: tuple[tuple[str, QuantSpec], ...],
    quantizer: Callable[[str], Quantizer],
) -> dict[str, Subject]:
    """
    A model as its recipe makes it, and in other number formats.

    Args:
        facts: The model.
        spec: What the recipe does to it; its name is empty.
        others: Other methods by name; those that do not divide it are left out.
        quantizer: Finds a quantizer by name.
    """
    found = {"": subject_of(facts, spec, quantizer)}
    if "quantization_config" in facts.config:
        return found
    for name, other in others:
        if other.method == spec.method:
            continue
        subject = subject_of(facts, other, quantizer)
        groups = other.group_size
        linears = [item for item in subject.table.classes if item.quantizable]
        if other.method == "none" or (
            linears
            and all(groups < 1 or item.shape[1] % groups == 0 for item in linears)
        ):
            found[name] = subject
    return found
