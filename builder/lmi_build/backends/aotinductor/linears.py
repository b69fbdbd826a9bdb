"""
Linears whose weights stay as small as the checkpoint has them.

A product with few rows (decoding) is as fast as its weights can be read, so every
kind widens its weights on the way into the sum, in one pass. A product with many rows
(a prompt) is as fast as the processor multiplies: there the weights are widened first
and go through a matrix product. A graph for processors calls kernels of ours for both;
what is written here is what they compute, and what a graph for GPUs is made from.

Shape suffixes: R rows, I input channels, O outputs, G groups of I, g channels of a
group, h half of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmi_build.backends.aotinductor import kernels
from lmi_build.numerics.activation_steps import INT8_MAX, MIN_STEP

if TYPE_CHECKING:
    from collections.abc import Callable

# Up to so many rows, reading the weights takes longer than multiplying.
FEW_ROWS = 8
# Zero point of a symmetric grid of 4 bits.
_MIDDLE = 8


class Linear(nn.Module, ABC):
    """
    What every kind has: an optional bias, added in float32.

    Args:
        bias_O: Added to the outputs, or None.
    """

    bias: Tensor | None

    def __init__(self, bias_O: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("bias", None if bias_O is None else bias_O.float())

    def forward(self, x_RI: Tensor) -> Tensor:
        """Outputs [R, O] in the type of the inputs."""
        y_RO = self.product(x_RI)
        if self.bias is not None:
            y_RO = y_RO + self.bias
        return y_RO.to(x_RI.dtype)

    @abstractmethod
    def product(self, x_RI: Tensor) -> Tensor:
        """The product without the bias."""


class FloatLinear(Linear):
    """
    Weights in the float type of the checkpoint.

    Args:
        weight_OI: Of any float type; kept.
        bias_O: As `Linear`.
    """

    weight: Tensor

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        super().__init__(bias_O)
        self.register_buffer("weight", weight_OI)

    def product(self, x_RI: Tensor) -> Tensor:
        """Sums in float32 for few rows."""
        return float_product(x_RI, self.weight)


def computed(x: Tensor) -> Tensor:
    """
    The same numbers, written down before they are read.

    The compiler would put what makes them, a whole norm, into the innermost loop of
    every sum that reads them, and make them anew for every output.
    """
    if not torch.compiler.is_exporting():
        return x
    x = x.contiguous()
    same: Tensor = torch.ops.prims.inductor_force_stride_order(x, x.stride())
    return same


def float_product(x_RI: Tensor, weight_OI: Tensor) -> Tensor:
    """Rows times float weights of any type: [R, O], float32 for few rows."""
    is_many = x_RI.shape[0] > FEW_ROWS
    if kernels.in_graph(x_RI) and not (is_many and _has_library(x_RI, weight_OI)):
        return kernels.float_product(x_RI.float(), weight_OI)
    if is_many:
        return functional.linear(x_RI, weight_OI.to(x_RI.dtype))
    return by_row(x_RI, lambda x_I: (weight_OI.float() * x_I).sum(-1))


def _has_library(x_RI: Tensor, weight_OI: Tensor) -> bool:
    """Whether torch multiplies such matrices well without a copy in float32."""
    return x_RI.dtype in {torch.bfloat16, weight_OI.dtype}


def by_row(x_RI: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """
    The same sum for each row, side by side.

    A sum over [R, O, I] would read the weights once for every row.
    """
    return torch.stack([product(x_I) for x_I in computed(x_RI.float())])


class GroupedLinear(Linear):
    """
    Codes with a scale for each group of channels; the values are the checkpoint's.

    Args:
        code_OGx: 4-bit codes, uint8 [O, G, h], channel j of a group in the low and
            j + g / 2 in the high half of byte j; or 8-bit codes, int8 [O, G, g].
        scale_OG: Of the type that the checkpoint has.
        zero_OG: Zero points, of the type of the codes; None for a symmetric grid.
        order_I: Channel that each place takes, or None where they lie in order.
        bias_O: As `Linear`.
    """

    code: Tensor
    scale: Tensor
    zero: Tensor | None
    order: Tensor | None

    def __init__(
        self,
        code_OGx: Tensor,
        scale_OG: Tensor,
        zero_OG: Tensor | None,
        order_I: Tensor | None = None,
        bias_O: Tensor | None = None,
    ) -> None:
        super().__init__(bias_O)
        self.register_buffer("code", code_OGx)
        self.register_buffer("scale", scale_OG)
        self.register_buffer("zero", zero_OG)
        self.register_buffer("order", order_I)

    @property
    def is_packed(self) -> bool:
        """Whether a byte holds two codes."""
        return self.code.dtype == torch.uint8

    def product(self, x_RI: Tensor) -> Tensor:
        """Widened on the way for few rows, before for many."""
        if self.order is not None:
            x_RI = x_RI.index_select(1, self.order)
        is_many = x_RI.shape[0] > FEW_ROWS
        if kernels.in_graph(x_RI) and not (is_many and x_RI.dtype == torch.bfloat16):
            form = (self.code, self.scale, self.zero)
            return kernels.grouped_product(x_RI.float(), *form)
        if is_many:
            return functional.linear(x_RI, self._widened(x_RI.dtype))
        return by_row(x_RI, self._row)

    def _widened(self, dtype: torch.dtype) -> Tensor:
        if kernels.in_graph(self.code):
            return kernels.widened(self.code, self.scale, self.zero, dtype)
        return self.weight().to(dtype)

    def weight(self) -> Tensor:
        """The weights, float32 [O, I], channels in the order of the groups."""
        code_OGx = self.code
        if self.is_packed:
            code_OGg = torch.cat((code_OGx & 15, code_OGx >> 4), -1).float()
        else:
            code_OGg = code_OGx.float()
        zero = self._zero()
        if zero is not None:
            code_OGg = code_OGg - zero[..., None]
        return (code_OGg * self.scale.float()[..., None]).flatten(1)

    def _zero(self) -> Tensor | None:
        """Zero points [O, G] or [1, 1]; None for 0."""
        if self.zero is not None:
            return self.zero.float()
        if not self.is_packed:
            return None
        return torch.full((1, 1), float(_MIDDLE), device=self.code.device)

    def _row(self, x_I: Tensor) -> Tensor:
        """One row's outputs, [O]."""
        _, groups, size = self.code.shape
        if self.is_packed:
            x_1Gg = x_I.view(1, groups, 2 * size)
            low, high = (self.code & 15).float(), (self.code >> 4).float()
            sum_OG = (low * x_1Gg[..., :size] + high * x_1Gg[..., size:]).sum(-1)
        else:
            x_1Gg = x_I.view(1, groups, size)
            sum_OG = (self.code.float() * x_1Gg).sum(-1)
        zero = self._zero()
        if zero is not None:
            sum_OG = sum_OG - zero * x_1Gg.sum(-1)
        return (sum_OG * self.scale.float()).sum(-1)


class CodedLinear(Linear):
    """
    8-bit integer products of 8-bit weights and activations, as the checkpoint means.

    Args:
        code_OI: int8, symmetric.
        scale_O: float32; one per output.
        step: The activations' step where the checkpoint has one, [1]; None finds one
            for each token: its largest absolute value over 127.
        bias_O: As `Linear`.

    Source:
        compressed-tensors 0.19, W8A8; the step as kernels take it, vLLM
        `scaled_int8_quant`.
    """

    code: Tensor
    scale: Tensor
    step: Tensor | None

    def __init__(
        self,
        code_OI: Tensor,
        scale_O: Tensor,
        step: Tensor | None = None,
        bias_O: Tensor | None = None,
    ) -> None:
        super().__init__(bias_O)
        self.register_buffer("code", code_OI)
        self.register_buffer("scale", scale_O)
        self.register_buffer("step", step)

    def product(self, x_RI: Tensor) -> Tensor:
        """Whole numbers until the scales."""
        x_RI = x_RI.float()
        if self.step is None:
            step_R1 = (x_RI.abs().amax(-1, keepdim=True) / INT8_MAX).clamp_min(MIN_STEP)
        else:
            step_R1 = self.step
        code_RI = (x_RI / step_R1).round().clamp(-INT8_MAX - 1, INT8_MAX)
        if x_RI.shape[0] > FEW_ROWS:
            sum_RO = torch._int_mm(code_RI.to(torch.int8), self.code.t())  # noqa: SLF001
        elif kernels.in_graph(x_RI):
            sum_RO = kernels.whole_product(code_RI.to(torch.int16), self.code)
        else:
            whole_OI = self.code.to(torch.int32)
            sum_RO = torch.stack(
                [
                    (whole_OI * row_I).sum(-1, dtype=torch.int32)
                    for row_I in computed(code_RI.to(torch.int32))
                ]
            )
        return sum_RO.float() * step_R1 * self.scale
