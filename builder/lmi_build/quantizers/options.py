"""What a recipe decided about the built-in quantizer's work, as the worker sees it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmi_build.spi import Params

# Methods that put weights on their grid one by one, without looking at any input.
DATA_FREE = frozenset({"rtn", "int8", "fp8"})
# Methods that move a scale from the inputs of a layer into its weights.
SMOOTHING = frozenset({"awq", "smoothquant"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """
    One method and its numbers; what a method has no use for keeps its default.

    Args:
        method: `rtn`, `gptq`, `awq`, `smoothquant`, `int8` or `fp8`.
        bits: Bits of one code.
        group_size: Input channels per scale, or -1 for the whole row.
        sym: Without zero points.
        desc_act: GPTQ visits channels by falling activation.
        true_sequential: Each layer is calibrated on what those before it became.
        damp_percent: GPTQ's dampening to begin with.
        clip: AWQ searches a clipping of each group.
        then_gptq: AWQ's scaled weights are rounded by GPTQ's columns.
        smoothing_strength: SmoothQuant's alpha; None searches it.
        activations: `none`, `dynamic` or `static` 8-bit activations.
        granularity: What shares an FP8 scale, `channel` or `tensor`.
        kv_cache_dtype: `auto`, `int8` or `fp8`.
    """

    method: str
    bits: int = 8
    group_size: int = -1
    sym: bool = True
    desc_act: bool = True
    true_sequential: bool = True
    damp_percent: float = 0.01
    clip: bool = True
    then_gptq: bool = False
    smoothing_strength: float | None = None
    activations: str = "none"
    granularity: str = "channel"
    kv_cache_dtype: str = "auto"

    @property
    def calibrates(self) -> bool:
        """Whether samples have to move through the decoder."""
        return (
            self.method not in DATA_FREE
            or self.activations == "static"
            or self.kv_cache_dtype != "auto"
        )

    @property
    def smooths(self) -> bool:
        """Whether scales move from activations into weights."""
        return self.method in SMOOTHING

    @property
    def needs_hessian(self) -> bool:
        """Whether X' X of every layer is summed up."""
        return self.method in {"gptq", "awq"}

    @property
    def needs_channels(self) -> bool:
        """Whether sizes of input channels and sample rows are kept."""
        return self.smooths or self.activations == "static"


def options_from_params(params: Params) -> Options:
    """Read the lowered parameters; keys of other concerns are left alone."""
    names = {field.name for field in fields(Options)}
    known: dict[str, Any] = {k: v for k, v in params.items() if k in names}
    return Options(**known)
