"""What a quantized checkpoint *is*, however it was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantScheme:
    """
    The numbers on disk, independent of the method that chose them.

    Args:
        weight_bits: Bits of one quantized weight; 16 or 32 when nothing is quantized.
        weight_dtype: `int` or `float`.
        group_size: Input channels per scale; -1 is the whole row.
        sym: Without zero points.
        activation_bits: Bits of activations in quantized products; 16 means float.
        packing: `none`, `gptq` (AutoGPTQ v1) or another format's name.
    """

    weight_bits: int
    weight_dtype: str
    group_size: int
    sym: bool
    activation_bits: int
    packing: str

    def to_json(self) -> dict[str, JSONValue]:
        """The scheme as it stands in keys and manifests."""
        return {name: getattr(self, name) for name in self.__slots__}
