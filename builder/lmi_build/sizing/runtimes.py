"""
What serving runtimes do with memory beside holding weights.

Each number that is not a runtime's own default is a rule of thumb and has an interval.

Sources: vLLM 0.6 to 0.11 `config/cache.py` (`block_size`, `gpu_memory_utilization`),
`vocab_parallel_embedding.py` (`DEFAULT_VOCAB_PADDING_SIZE`); TensorRT-LLM 0.12 to 1.0
`tokens_per_block` of trtllm-build and `free_gpu_memory_fraction` of its executor.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """
    Bytes between which the truth lies.

    Args:
        low: No less than this.
        high: No more than this.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"{self.low} to {self.high} is no interval")

    def __add__(self, other: Interval) -> Interval:
        return Interval(low=self.low + other.low, high=self.high + other.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """
    How one runtime lays a model out on a device.

    Args:
        name: Such as `vllm`.
        block_tokens: Tokens of one block of the cache; 1 where it is contiguous.
        vocabulary_multiple: Rows of the embedding and the head are padded to this.
        splits_embedding: Ranks hold a part of the embedding; else each has all of it.
        shares_tied: A head tied to the embedding is held once for certain.
        latent_multiple: A latent cache (MLA) is kept and padded to this; 0 where keys
            and values of all heads are kept instead.
        rotary_bytes: Bytes of one number of the rotary tables, from and to.
        narrows: Weights in float32 are held in 16 bits.
        computes_wide: It computes in float32: the cache and activations are so, and
            float weights may be.
        float_zeros: Zero points are held as scales are, in 16 bits.
        wide_routers: Routers are held in float32.
        max_num_tokens: Packed tokens of one forward where bounds leave it open.
        context: Driver, libraries and their workspaces.
        communication: What every rank adds where there are several.
        graphs: Captured graphs and what they keep.
        free_share: Share of what the cache or the whole takes that the runtime's
            default leaves free beside it: (of all, of the cache).
        source: Where the defaults stand.
    """

    name: str
    block_tokens: int
    vocabulary_multiple: int
    splits_embedding: bool
    shares_tied: bool
    latent_multiple: int
    rotary_bytes: tuple[int, int]
    narrows: bool
    computes_wide: bool
    wide_routers: bool
    float_zeros: bool
    max_num_tokens: int
    context: Interval
    communication: Interval
    graphs: Interval
    free_share: tuple[float, float]
    source: str


RUNTIMES: Mapping[str, Runtime] = MappingProxyType(
    {
        "vllm": Runtime(
            name="vllm",
            block_tokens=16,
            vocabulary_multiple=64,
            splits_embedding=True,
            shares_tied=True,
            latent_multiple=128,
            rotary_bytes=(2, 4),
            narrows=True,
            computes_wide=False,
            wide_routers=False,
            float_zeros=False,
            max_num_tokens=8192,
            context=Interval(low=200 * MIB, high=GIB),
            communication=Interval(low=64 * MIB, high=GIB),
            graphs=Interval(low=0, high=3 * GIB // 2),
            free_share=(0.1, 0.0),
            source="vLLM: block_size 16, gpu_memory_utilization 0.9",
        ),
        "tensorrt-llm": Runtime(
            name="tensorrt-llm",
            block_tokens=64,
            vocabulary_multiple=1,
            splits_embedding=False,
            shares_tied=False,
            latent_multiple=0,
            rotary_bytes=(0, 4),
            narrows=True,
            computes_wide=False,
            wide_routers=True,
            float_zeros=True,
            max_num_tokens=8192,
            context=Interval(low=300 * MIB, high=3 * GIB // 2),
            communication=Interval(low=64 * MIB, high=GIB),
            graphs=Interval(low=0, high=GIB // 2),
            free_share=(0.0, 0.1),
            source="TensorRT-LLM: free_gpu_memory_fraction 0.9, blocks by release",
        ),
        "neuronx": Runtime(
            name="neuronx",
            block_tokens=1,
            vocabulary_multiple=1,
            splits_embedding=True,
            shares_tied=False,
            latent_multiple=0,
            rotary_bytes=(0, 4),
            narrows=False,
            computes_wide=False,
            wide_routers=False,
            float_zeros=False,
            max_num_tokens=1 << 30,
            context=Interval(low=0, high=GIB // 2),
            communication=Interval(low=0, high=GIB // 2),
            graphs=Interval(low=0, high=2 * GIB),
            free_share=(0.0, 0.0),
            source="NxD Inference: one contiguous cache for each request",
        ),
        "onnxruntime": Runtime(
            name="onnxruntime",
            block_tokens=1,
            vocabulary_multiple=1,
            splits_embedding=False,
            shares_tied=False,
            latent_multiple=0,
            rotary_bytes=(0, 4),
            narrows=False,
            computes_wide=True,
            wide_routers=False,
            float_zeros=False,
            max_num_tokens=8192,
            context=Interval(low=64 * MIB, high=GIB),
            communication=Interval(low=0, high=0),
            graphs=Interval(low=0, high=0),
            free_share=(0.0, 0.0),
            source="onnxruntime-genai: one contiguous cache, shared past and present",
        ),
    }
)
