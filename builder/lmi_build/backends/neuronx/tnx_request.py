"""A decoder that Transformers NeuronX is asked for, and the shape it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.buckets import (
    Graphs,
    chosen_context_buckets,
    count_graphs,
    padded_positions,
    token_buckets,
)
from lmi_build.backends.neuronx.heads import (
    MODES,
    Heads,
    HeadTerms,
    head_terms,
    lay_out,
)
from lmi_build.backends.neuronx.memory import (
    CoreMemory,
    HostMemory,
    MemoryTerms,
    core_memory,
    host_memory,
)
from lmi_build.backends.neuronx.tnx_loaders import TnxLoader, tnx_loader
from lmi_build.backends.neuronx.tnx_models import TnxModel, tnx_models

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.digest import JSONValue
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.model import ModelGeometry

# Float types by what the library calls them.
AMPS: Mapping[str, str] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
BSH = "BSH"
# What `MixtralConfig` of transformers takes where config.json says nothing.
_USUAL_EXPERTS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TnxRequest:
    """
    What is compiled.

    Args:
        bounds: The recipe's bounds.
        geometry: The model's sizes.
        config: The whole `config.json`.
        release: The release that will serve.
        instance: The machine that will serve.
        tensor_parallel_size: Cores that share each layer.
        dtype: Of the weights, a key of `AMPS`.
        int8: Linear weights are rounded to 8 bits as they are loaded.
        options: `compile.options`.
        has_device: The machine that compiles has Neuron devices.

    Example:
        >>> request = TnxRequest(
        ...     bounds=Bounds(max_input_len=1024, max_output_len=512, max_batch_size=8),
        ...     geometry=geometry,
        ...     config=config,
        ...     release=neuron_releases()["djl-neuronx-0.30.0"],
        ...     instance=instances()["ml.inf2.24xlarge"],
        ...     tensor_parallel_size=12,
        ...     dtype="bfloat16",
        ... )  # doctest: +SKIP
    """

    bounds: Bounds
    geometry: ModelGeometry
    config: Mapping[str, Any]
    release: NeuronRelease
    instance: Instance
    tensor_parallel_size: int
    dtype: str
    int8: bool = False
    options: Mapping[str, JSONValue] = field(default_factory=dict)
    has_device: bool = True

    @property
    def amp(self) -> str:
        """`f32`, `f16` or `bf16`."""
        return AMPS[self.dtype]

    @property
    def model_type(self) -> str:
        """As `config.json` has it, such as `llama`."""
        return self.geometry.model_type

    @property
    def model(self) -> TnxModel:
        """What the library has for the model type."""
        return tnx_models()[self.model_type]

    @property
    def loader(self) -> TnxLoader:
        """The loader of the release."""
        return tnx_loader(self.release)

    @property
    def n_positions(self) -> int:
        """Prompt and output of one request, in tokens."""
        return self.bounds.max_seq_len

    @property
    def continuous(self) -> bool:
        """Whether requests join and leave a running batch."""
        return self.loader.continuous(self.model_type, self.bounds.max_batch_size)

    @property
    def num_experts(self) -> int:
        """Experts of each layer; 0 without."""
        if self.model.mlp != "experts":
            return 0
        found = self.config.get("num_local_experts")
        return found if isinstance(found, int) and found > 0 else _USUAL_EXPERTS

    def on(self, name: str) -> bool:
        """Whether a switch among the options is set."""
        return self.options.get(name) is True

    @property
    def whole_prompts(self) -> bool:
        """Whether prompts have one bucket, of all positions, whatever is listed."""
        return self.continuous and (
            self.loader.context == "whole" or self.options.get("cache_layout") == BSH
        )

    @property
    def takes_contexts(self) -> bool:
        """Whether the class that loads the model has graphs for prompts at all."""
        return not (self.model.single_prompts and self.loader.model_class == "own")

    @property
    def on_device_embedding(self) -> bool:
        """Whether the embedding lies on the cores."""
        presharded = self.loader.weights == "presharded"
        return presharded or self.on("on_device_embedding")


@dataclass(frozen=True, kw_only=True, slots=True)
class TnxShape:
    """
    The lengths, heads and graphs that a request comes to.

    Args:
        tokens: Token buckets.
        contexts: Context buckets.
        graphs: How many graphs that makes.
        head_terms: What decided the layout of heads.
        heads: Heads as the cores hold them.
        memory: What decides the memory of each core.
    """

    tokens: tuple[int, ...]
    contexts: tuple[int, ...]
    graphs: Graphs
    head_terms: HeadTerms
    heads: Heads
    memory: MemoryTerms


def given_buckets(request: TnxRequest) -> tuple[int, ...] | None:
    """Context buckets that the recipe lists, rising; None where it does not."""
    given = request.options.get("context_buckets")
    if not isinstance(given, list | tuple):
        return None
    return tuple(sorted(size for size in given if isinstance(size, int)))


def context_lengths(request: TnxRequest) -> tuple[int, ...]:
    """
    Context buckets of a request.

    Those of the recipe, else powers of two and the longest prompt; one of all positions
    where the release takes no other; none where the class has none.
    """
    if not request.takes_contexts:
        return ()
    if request.whole_prompts:
        return (request.n_positions,)
    return given_buckets(request) or chosen_context_buckets(
        request.bounds.max_input_len
    )


def shape_of(request: TnxRequest) -> TnxShape:
    """
    The shape that a request comes to.

    Args:
        request: Its model type, release and dtype are known.
    """
    model, batch = request.model, request.bounds.max_batch_size
    positions = padded_positions(
        (request.n_positions,) if request.continuous else request.n_positions,
        shard_over_sequence=request.on("shard_over_sequence"),
    )
    tokens, contexts = token_buckets(positions), context_lengths(request)
    alone = request.continuous or model.single_prompts
    context_batch = 1 if alone else batch
    broadcasts = model.single_prompts and batch > 1 and bool(contexts)
    graphs = count_graphs(
        tokens,
        contexts,
        batch_sizes=[batch],
        context_batch_sizes=[context_batch],
        context_unrolled=model.context_unrolled or request.geometry.num_layers == 1,
        on_device_embedding=request.on_device_embedding,
        broadcasts=broadcasts,
    )
    terms = heads_of(request, has_context=bool(contexts), alone=alone)
    heads = lay_out(terms)
    split = request.on("shard_over_sequence")
    memory = MemoryTerms(
        geometry=request.geometry,
        model=model,
        heads=heads,
        tensor_parallel_size=request.tensor_parallel_size,
        amp=request.amp,
        int8=request.int8,
        on_device_embedding=request.on_device_embedding,
        weight_tiling=request.on("weight_tiling"),
        num_experts=request.num_experts,
        batch_size=batch,
        cache_positions=tokens[-1],
        contexts=contexts,
        context_batch_size=context_batch,
        num_graphs=graphs.total,
        sequence_shards=max(1, heads.kv_replication) if split else 0,
        broadcasts=broadcasts,
    )
    return TnxShape(
        tokens=tokens,
        contexts=contexts,
        graphs=graphs,
        head_terms=terms,
        heads=heads,
        memory=memory,
    )


def heads_of(request: TnxRequest, *, has_context: bool, alone: bool) -> HeadTerms:
    """
    What decides how a request's heads are laid out.

    Args:
        request: What is compiled.
        has_context: There is a graph for prompts.
        alone: Prompts are computed one by one.
    """
    requested = request.options.get("group_query_attention")
    return replace(
        head_terms(
            request.geometry,
            tensor_parallel_size=request.tensor_parallel_size,
            row=request.release.tnx_row,
        ),
        requested=requested if requested in MODES else None,
        batch_size=request.bounds.max_batch_size,
        continuous=alone,
        has_context=has_context,
        qkv_tiling=request.on("qkv_tiling"),
    )


def parameters(request: TnxRequest) -> int:
    """
    Weights of the model, from its sizes: attention, MLP, embedding and head.

    Args:
        request: What is compiled.
    """
    geometry = request.geometry
    hidden, kv_heads = geometry.hidden_size, geometry.num_key_value_heads
    kv_width = kv_heads * hidden // geometry.num_attention_heads
    matrices = {"plain": 2, "gated": 3, "experts": 3 * request.num_experts}
    width = matrices[request.model.mlp] * geometry.intermediate_size
    layer = hidden * (2 * hidden + 2 * kv_width + width)
    return geometry.num_layers * layer + 2 * hidden * geometry.vocab_size


def tnx_core_memory(request: TnxRequest) -> CoreMemory:
    """
    What each core of the machine that serves holds.

    Args:
        request: What is compiled.
    """
    return core_memory(shape_of(request).memory)


def tnx_host_memory(request: TnxRequest) -> HostMemory:
    """
    What compiling takes of the host; rules of thumb.

    Args:
        request: What is compiled.
    """
    return host_memory(
        shape_of(request).memory,
        parameters=parameters(request),
        has_device=request.has_device,
    )
