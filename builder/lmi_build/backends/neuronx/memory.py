"""
Memory of a decoder on each core, and of the host that compiles it.

Weights and the key-value cache are counted tensor by tensor, as Transformers NeuronX
pads, replicates and shards them. What graphs and their intermediate results take is a
rule of thumb, and named as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.heads import TILE, Heads, padded_vocabulary, round_up
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.backends.neuronx.tnx_models import TnxModel
    from lmi_build.digest import JSONValue
    from lmi_build.values.model import ModelGeometry

AMP_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_GIB = 1024**3
_SCALE_BYTES = 4
_INDEX_BYTES = 8
_FLOAT_BYTES = 4
# Rules of thumb. A graph holds instructions worth about a sixteenth of the weights it
# reads: aws-neuron/transformers-neuronx#45 saw 20.4 GB for 13.9 GB of weights and cache
# of Llama 2 7B in eight graphs. Intermediate results are those of one layer in float32.
_CODE_SHARE = 16
_ACTIVATION_ROWS = 4
# On the host: the weights as they are read and as they are sharded, and for each
# compiler process something for each layer that it unrolls. Chosen so that an 8B model
# does not fit 32 GB, where it was killed (aws-neuron/aws-neuron-sdk#1222,
# huggingface/optimum-neuron#551), and a 7B one fits the 128 GB of ml.inf2.8xlarge.
_HOST_COPIES = 2
_HOST_BASE_BYTES = 2 * _GIB
_PROCESS_BASE_BYTES = _GIB
_PROCESS_LAYER_BYTES = _GIB // 8
_HOST_SHARE = 0.9
_DISK_BASE_BYTES = _GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryTerms:
    """
    What decides how much memory a decoder takes.

    Args:
        geometry: The model's sizes.
        model: What it has beside attention.
        heads: Its heads as the cores hold them.
        tensor_parallel_size: Cores.
        amp: `f32`, `f16` or `bf16`.
        int8: Linear weights are rounded to 8 bits as they are loaded.
        on_device_embedding: The embedding lies on the cores; else on the host.
        weight_tiling: Each core's columns of the MLP are rounded up to whole tiles.
        num_experts: Experts of each layer; 0 without.
        batch_size: Of generation.
        cache_positions: Largest token bucket.
        contexts: Context buckets.
        context_batch_size: Prompts that are computed together.
        num_graphs: Graphs of the whole model.
        sequence_shards: Parts that the cache is split into along the sequence; 0 where
            it is not split.
        broadcasts: Prompts have caches of their own, which are copied over the batch.
    """

    geometry: ModelGeometry
    model: TnxModel
    heads: Heads
    tensor_parallel_size: int
    amp: str
    int8: bool
    on_device_embedding: bool
    batch_size: int
    cache_positions: int
    contexts: tuple[int, ...]
    context_batch_size: int
    num_graphs: int
    weight_tiling: bool = False
    num_experts: int = 0
    sequence_shards: int = 0
    broadcasts: bool = False

    @property
    def amp_bytes(self) -> int:
        """Bytes of one float."""
        return AMP_BYTES[self.amp]

    @property
    def linear_bytes(self) -> int:
        """Bytes of one weight of a linear layer."""
        return 1 if self.int8 else self.amp_bytes

    @property
    def intermediate(self) -> int:
        """Columns of the MLP on one core."""
        tp, size = self.tensor_parallel_size, self.geometry.intermediate_size
        if self.num_experts:
            return round_up(size * self.num_experts, tp) // tp
        share = round_up(size, tp) // tp
        return round_up(share, TILE) if self.weight_tiling else share


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreMemory:
    """
    Memory of one core, in bytes; every core takes as much.

    Args:
        attention_bytes: Weights of attention in all layers.
        mlp_bytes: Weights between, in all layers.
        vocabulary_bytes: The head, and the embedding where it lies on the cores.
        norm_bytes: Norms, which every core has whole.
        cache_bytes: The key-value cache.
        scratch_bytes: Graphs and intermediate results; a rule of thumb.
    """

    attention_bytes: int
    mlp_bytes: int
    vocabulary_bytes: int
    norm_bytes: int
    cache_bytes: int
    scratch_bytes: int

    @property
    def weight_bytes(self) -> int:
        """All weights."""
        return (
            self.attention_bytes
            + self.mlp_bytes
            + self.vocabulary_bytes
            + self.norm_bytes
        )

    @property
    def total_bytes(self) -> int:
        """Everything."""
        return self.weight_bytes + self.cache_bytes + self.scratch_bytes

    def to_json(self) -> dict[str, JSONValue]:
        """Each part by name, and the total."""
        found: dict[str, JSONValue] = {
            name: getattr(self, name) for name in self.__slots__
        }
        return {**found, "total_bytes": self.total_bytes}


@dataclass(frozen=True, kw_only=True, slots=True)
class HostMemory:
    """
    What compiling takes of the host; rules of thumb.

    Args:
        weight_bytes: Copies of the weights, and of the cache where there is no device.
        process_bytes: One compiler process.
        num_graphs: Processes that would run at once if nothing held them back.
    """

    weight_bytes: int
    process_bytes: int
    num_graphs: int

    def needed(self, num_workers: int) -> int:
        """Bytes with so many compiler processes at a time."""
        return self.weight_bytes + num_workers * self.process_bytes

    def workers(self, memory_bytes: int) -> int:
        """
        Compiler processes that fit a host; 0 where not even one does.

        Args:
            memory_bytes: Memory of the host.
        """
        room = int(memory_bytes * _HOST_SHARE) - self.weight_bytes
        return max(0, min(self.num_graphs, room // self.process_bytes))


def core_memory(terms: MemoryTerms) -> CoreMemory:
    """
    What one core holds.

    Args:
        terms: Model, layout, lengths and batch.

    Source: `to_neuron` and `init_caches` of DecoderLayer and `to_neuron` of
    DecoderLmHeadForSamplingNoEmbedding in decoder.py, 0.10 to 0.13.
    """
    geometry = terms.geometry
    vocabulary = _vocabulary_bytes(terms)
    attention = geometry.num_layers * _attention_bytes(terms)
    mlp = geometry.num_layers * _mlp_bytes(terms)
    norm = geometry.hidden_size * _FLOAT_BYTES * (2 if terms.model.biases else 1)
    return CoreMemory(
        attention_bytes=attention,
        mlp_bytes=mlp,
        vocabulary_bytes=vocabulary,
        norm_bytes=(2 * geometry.num_layers + 1) * norm,
        cache_bytes=_cache_bytes(terms),
        scratch_bytes=_scratch_bytes(terms, attention + mlp + vocabulary),
    )


def host_memory(terms: MemoryTerms, *, parameters: int, has_device: bool) -> HostMemory:
    """
    What compiling takes of the host.

    Args:
        terms: Model, layout, lengths and batch.
        parameters: Weights of the model.
        has_device: Shards go to the device; else they stay on the host, as the cache
            does.
    """
    weights = parameters * terms.amp_bytes * _HOST_COPIES
    if not has_device:
        core = core_memory(terms)
        shards = terms.tensor_parallel_size * (core.weight_bytes + core.cache_bytes)
        weights = max(weights, shards + parameters * terms.amp_bytes)
    layers = terms.geometry.num_layers
    return HostMemory(
        weight_bytes=weights + _HOST_BASE_BYTES,
        process_bytes=_PROCESS_BASE_BYTES + layers * _PROCESS_LAYER_BYTES,
        num_graphs=terms.num_graphs,
    )


def disk_bytes(terms: MemoryTerms, *, parameters: int, presharded: bool) -> int:
    """
    What the result takes on disk: weights exactly, graphs by a rule of thumb.

    Args:
        terms: Model, layout, lengths and batch.
        parameters: Weights of the model.
        presharded: Weights lie there as each core holds them; else as they came.
    """
    core, tp = core_memory(terms), terms.tensor_parallel_size
    weights = tp * core.weight_bytes if presharded else parameters * terms.amp_bytes
    graphs = terms.num_graphs * (core.weight_bytes // _CODE_SHARE)
    return weights + graphs + _DISK_BASE_BYTES


def explain_core(core: CoreMemory, *, core_bytes: int) -> tuple[str, ...]:
    """
    One line for each part of a core's memory.

    Args:
        core: What it holds.
        core_bytes: What it has.
    """
    weights = (
        f"weights {format_bytes(core.weight_bytes)} on each core: attention"
        f" {format_bytes(core.attention_bytes)}, MLP {format_bytes(core.mlp_bytes)},"
        f" vocabulary {format_bytes(core.vocabulary_bytes)}"
    )
    scratch = (
        f"graphs and intermediate results about {format_bytes(core.scratch_bytes)}, a"
        " rule of thumb"
    )
    return (
        weights,
        f"key-value cache {format_bytes(core.cache_bytes)} on each core",
        scratch,
        f"{format_bytes(core.total_bytes)} of {format_bytes(core_bytes)} on each core",
    )


def explain_host(host: HostMemory, *, memory_bytes: int) -> tuple[str, ...]:
    """
    One line for each thing that decides how many compiler processes run.

    Args:
        host: What compiling takes.
        memory_bytes: What the host has.
    """
    held = (
        f"compiling holds {format_bytes(host.weight_bytes)} of weights and"
        f" {format_bytes(host.process_bytes)} for each of {host.num_graphs} graphs at"
        " once, rules of thumb"
    )
    room = (
        f"{format_bytes(memory_bytes)} of host memory has room for"
        f" {host.workers(memory_bytes)} compiler processes"
    )
    return held, room


def _attention_bytes(terms: MemoryTerms) -> int:
    """Query, key, value and output of one layer."""
    hidden, heads = terms.geometry.hidden_size, terms.heads
    tp = terms.tensor_parallel_size
    projected = (heads.query_width + 2 * heads.kv_width) // tp
    weights = hidden * (projected + heads.output_width // tp)
    return _with_extras(weights, projected + hidden, terms)


def _mlp_bytes(terms: MemoryTerms) -> int:
    """What lies between two attentions."""
    hidden, width = terms.geometry.hidden_size, terms.intermediate
    if terms.model.mlp == "plain":
        return _with_extras(2 * hidden * width, width + hidden, terms)
    if terms.model.mlp == "gated":
        return _with_extras(3 * hidden * width, 2 * width + hidden, terms)
    experts, tp = terms.num_experts, terms.tensor_parallel_size
    router = hidden * experts * terms.amp_bytes
    own = max(1, experts // tp) * _INDEX_BYTES
    return _with_extras(3 * hidden * width, 3 * width, terms) + router + own


def _with_extras(weights: int, outputs: int, terms: MemoryTerms) -> int:
    """Linear weights with a scale and a bias for each output, where there are such."""
    found = weights * terms.linear_bytes
    if terms.int8:
        found += outputs * _SCALE_BYTES
    if terms.model.biases:
        found += outputs * terms.amp_bytes
    return found


def _vocabulary_bytes(terms: MemoryTerms) -> int:
    """Head, and embedding where it lies on the cores, in float32 as norms are."""
    geometry, tp = terms.geometry, terms.tensor_parallel_size
    hidden, vocabulary = geometry.hidden_size, geometry.vocab_size
    found = hidden * (padded_vocabulary(vocabulary, tp) // tp) * terms.amp_bytes
    if terms.model.embedding_norm:
        slopes = round_up(geometry.num_attention_heads, tp) // tp
        found += slopes * _FLOAT_BYTES
    if terms.sequence_shards:
        found += _INDEX_BYTES
    if not terms.on_device_embedding:
        return found
    rows = vocabulary
    if terms.model.learned_positions:
        rows += geometry.max_position_embeddings + terms.model.extra_positions
    found += rows * (round_up(hidden, tp) // tp) * _FLOAT_BYTES
    if terms.model.embedding_norm:
        found += 2 * hidden * _FLOAT_BYTES
    return found


def _cache_bytes(terms: MemoryTerms) -> int:
    """Keys and values of all layers, and of prompts that have caches of their own."""
    heads = terms.heads
    batch = terms.batch_size // heads.batch_shards
    tokens = terms.cache_positions // max(1, terms.sequence_shards) * batch
    if terms.broadcasts:
        tokens += sum(terms.contexts)
    width = heads.cache_heads * (heads.output_width // heads.num_heads)
    return 2 * terms.geometry.num_layers * tokens * width * terms.amp_bytes


def _scratch_bytes(terms: MemoryTerms, weight_bytes: int) -> int:
    """Instructions of all graphs, and one layer of the longest prompt or batch."""
    code = terms.num_graphs * weight_bytes // _CODE_SHARE
    prompt = _activation_bytes(max(terms.contexts, default=1), terms)
    return code + terms.context_batch_size * prompt + _step_bytes(terms)


def _activation_bytes(length: int, terms: MemoryTerms) -> int:
    """Intermediate results of one layer for one prompt."""
    tp, heads = terms.tensor_parallel_size, terms.heads
    projected = (heads.query_width + 2 * heads.kv_width) // tp
    row = _ACTIVATION_ROWS * terms.geometry.hidden_size + projected
    row += 2 * terms.intermediate + heads.num_heads // tp * length
    return length * row * _FLOAT_BYTES


def _step_bytes(terms: MemoryTerms) -> int:
    """Intermediate results of one step of generation."""
    tp = terms.tensor_parallel_size
    scores = terms.heads.num_heads // tp * terms.cache_positions
    logits = padded_vocabulary(terms.geometry.vocab_size, tp) // tp
    return terms.batch_size * (scores + logits) * _FLOAT_BYTES


def parameters_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """
    Weights of a model.

    Args:
        shapes: Shape of every tensor.
    """
    total = 0
    for shape in shapes:
        count = 1
        for size in shape:
            count *= size
        total += count
    return total
