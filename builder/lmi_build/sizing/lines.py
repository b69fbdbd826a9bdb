"""
The words that memory is counted in: lines, and the model that they are of.

A subject may bring more than its own weights: adapters that the runtime keeps room
for, and a smaller model that drafts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.catalog.runtimes import Interval

if TYPE_CHECKING:
    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.digest import JSONValue
    from lmi_build.sizing.cache import CacheShape
    from lmi_build.sizing.weights import WeightTable
    from lmi_build.values.model import ModelGeometry
    from lmi_build.values.quant import QuantScheme

HALF_BYTES = 2
FLOAT_BYTES = 4
_CACHE_BITS = {"int8": 8, "fp8": 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLine:
    """
    One thing that takes memory of a device.

    Args:
        name: What it is.
        bytes: How much, from and to.
        formula: Its arithmetic in words.
        source: Where that stands; `rule of thumb` where nothing better is known.
    """

    name: str
    bytes: Interval
    formula: str
    source: str

    def to_json(self) -> dict[str, JSONValue]:
        """The line as data."""
        return {
            "name": self.name,
            "low_bytes": self.bytes.low,
            "high_bytes": self.bytes.high,
            "formula": self.formula,
            "source": self.source,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """
    Low-rank adapters (LoRA) that a runtime keeps room for, there or not.

    Args:
        count: How many are served at once.
        rank: The largest of any.
    """

    count: int
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """
    The model whose memory is asked for, quantized or not.

    Args:
        table: Its weights.
        cache: Its cache.
        geometry: Its sizes.
        scheme: What its linears become.
        adapters: Room for adapters; None without.
        draft: A model that drafts tokens beside it; None without.
    """

    table: WeightTable
    cache: CacheShape
    geometry: ModelGeometry
    scheme: QuantScheme
    adapters: Adapters | None = None
    draft: Subject | None = None

    @property
    def cache_bits(self) -> int:
        """Bits of one number of the cache, where the runtime does not widen it."""
        return _CACHE_BITS.get(self.scheme.kv_cache_dtype, 8 * HALF_BYTES)

    def cache_bits_in(self, runtime: Runtime) -> int:
        """Bits of one number of the cache, as a runtime keeps it."""
        return 8 * FLOAT_BYTES if runtime.computes_wide else self.cache_bits

    @property
    def unknown(self) -> tuple[str, ...]:
        """Everything that is not certain about it."""
        own = (*self.table.unknown, *self.cache.unknown)
        drafting = () if self.draft is None else self.draft.unknown
        return (*own, *(f"of the draft model: {why}" for why in drafting))


def total(lines: tuple[MemoryLine, ...]) -> Interval:
    """The sum of lines."""
    return Interval(
        low=sum(line.bytes.low for line in lines),
        high=sum(line.bytes.high for line in lines),
    )
