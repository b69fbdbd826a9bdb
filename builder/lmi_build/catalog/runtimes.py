"""
What serving runtimes do with memory beside holding weights.

Each number that is not a runtime's own default is a rule of thumb and has an interval.

Sources: vLLM 0.6 to 0.11 `config/cache.py` (`block_size`, `gpu_memory_utilization`),
`vocab_parallel_embedding.py` (`DEFAULT_VOCAB_PADDING_SIZE`); TensorRT-LLM 0.12 to 1.0
`tokens_per_block` of trtllm-build and `free_gpu_memory_fraction` of its executor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.tables import read_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "runtimes.toml"
MIB = 1 << 20
GIB = 1 << 30
_INTERVALS = ("context", "communication", "switched_communication", "graphs")


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
        groups_layers: Layers that slide and others share one pool of blocks, in groups
            of equally many.
        vocabulary_multiple: Rows of the embedding and the head are padded to this.
        splits_embedding: Ranks hold a part of the embedding; else each has all of it.
        shares_tied: A head tied to the embedding is held once for certain.
        latent_multiple: A latent cache (MLA) is kept and padded to this; 0 where keys
            and values of all heads are kept instead.
        copies_latent: What a latent is expanded by is kept a second time, in 16 bits.
        unsplit_bytes: Most that one tensor's block may be larger than the tensor.
        rotary_bytes: Bytes of one number of the rotary tables, from and to.
        narrows: Weights in float32 are held in 16 bits.
        computes_wide: It computes in float32: the cache and activations are so, and
            float weights may be.
        float_zeros: Zero points are held as scales are, in 16 bits.
        wide_routers: Routers are held in float32.
        max_num_tokens: Packed tokens of one forward where bounds leave it open.
        context: Driver, libraries and their workspaces.
        communication: What every rank adds where there are several.
        switched_communication: The same where a switch joins the devices.
        graphs: Captured graphs and what they keep.
        free_share: Share of what the cache or the whole takes that the runtime's
            default leaves free beside it: (of all, of the cache).
        source: Where the defaults stand.
    """

    name: str
    block_tokens: int
    groups_layers: bool
    vocabulary_multiple: int
    splits_embedding: bool
    shares_tied: bool
    latent_multiple: int
    copies_latent: bool
    unsplit_bytes: int
    rotary_bytes: tuple[int, int]
    narrows: bool
    computes_wide: bool
    wide_routers: bool
    float_zeros: bool
    max_num_tokens: int
    context: Interval
    communication: Interval
    switched_communication: Interval
    graphs: Interval
    free_share: tuple[float, float]
    source: str


@cache
def runtimes() -> Mapping[str, Runtime]:
    """
    Every known runtime by name.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return MappingProxyType(
        {name: _runtime(name, table) for name, table in read_tables(FILE).items()}
    )


def _runtime(name: str, table: Mapping[str, Any]) -> Runtime:
    """One table, whose intervals are in MiB."""
    values = {"name": name, **table}
    for key in _INTERVALS:
        low, high = values.pop(f"{key}_mib")
        values[key] = Interval(low=low * MIB, high=high * MIB)
    for key in ("rotary_bytes", "free_share"):
        values[key] = tuple(values[key])
    try:
        return Runtime(**values)
    except TypeError as error:
        raise ValueError(f"{FILE}: [{name}]: {error}") from error
