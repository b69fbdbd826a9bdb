"""What a quantized checkpoint *is*, however it was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue

# What lies on disk: AutoGPTQ with zero points stored minus one and as they are,
# AutoAWQ's GEMM layout, and compressed-tensors' three, by their own names.
COMPRESSED_TENSORS = ("pack-quantized", "int-quantized", "float-quantized")
PACKINGS = ("none", "gptq", "gptq_v2", "awq", *COMPRESSED_TENSORS)
# Weights as only NVIDIA's Model Optimizer lays them out; they are passed on to a
# backend that says it reads them, and written for one, but not decoded.
MODELOPT = "modelopt"


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
        packing: One of `PACKINGS`, or `MODELOPT`.
        activation_dtype: `none` (they stay as the model computes them), `int` or
            `float` (FP8).
        activation_scheme: `none`, `dynamic` (a scale per token, found while serving)
            or `static` (a scale per tensor, `NAME.input_scale` on disk).
        granularity: What shares a scale where `group_size` is -1: `channel` (each
            row) or `tensor` (the whole matrix).
        kv_cache_dtype: `auto` (as the model computes them), `int8` or `fp8`, with
            `k_scale` and `v_scale` beside each attention.
        scale_dtype: Float type of the scales on disk; AutoGPTQ and AutoAWQ have
            `float16` only.
        act_order: Whether groups hold channels that do not lie together, so that a
            group index says which; false for everything that lmi-build quantizes.
    """

    weight_bits: int
    weight_dtype: str
    group_size: int
    sym: bool
    activation_bits: int
    packing: str
    activation_dtype: str = "none"
    activation_scheme: str = "none"
    granularity: str = "channel"
    kv_cache_dtype: str = "auto"
    scale_dtype: str = "float16"
    act_order: bool = False

    def to_json(self) -> dict[str, JSONValue]:
        """The scheme as it stands in keys and manifests."""
        return {name: getattr(self, name) for name in self.__slots__}
