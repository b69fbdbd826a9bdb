"""
Linears computed as a kernel with 8-bit products computes them.

Where weights and activations are both int8, what comes after a quantized layer is made
with its own codes: the inputs are divided by their smoothing, rounded with one step per
token, multiplied as integers and scaled once. So the layers that follow are calibrated
on what they will really see, and on processors with instructions for it a product takes
half the time of one in bfloat16 (430 against 205 GOP per CPU second).

The sums of a product are whole numbers below 2^31, the same in any order.

Shape suffixes: T tokens, I input channels, O output channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmi_build.numerics.activation_steps import INT8_MAX, MIN_STEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmi_build.numerics.gptq import Quantized
    from lmi_build.values.quant import QuantScheme

# Unsigned codes less this are what a kernel multiplies.
_MIDDLE = 128
_BITS = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CodedLinear:
    """
    Linears that share an input, side by side.

    Args:
        code_IO: int8, or whole numbers in the type of the computation where integers
            have no fast product.
        scale_O: float32 scales of the outputs.
        inverse_I: 1 / the smoothing of the inputs, float32, or None.
    """

    code_IO: Tensor
    scale_O: Tensor
    inverse_I: Tensor | None


def is_coded(scheme: QuantScheme) -> bool:
    """Whether kernels multiply integers, each token's with a step of its own."""
    return (
        scheme.weight_dtype == "int"
        and scheme.weight_bits == _BITS
        and scheme.sym
        and scheme.granularity == "channel"
        and scheme.group_size == -1
        and scheme.activation_dtype == "int"
        and scheme.activation_scheme == "dynamic"
    )


def coded_linear(
    quantized: Quantized, scale_I: Tensor | None, dtype: torch.dtype
) -> CodedLinear:
    """
    The product that a kernel makes of a result.

    Args:
        quantized: Symmetric 8-bit codes with one scale per output.
        scale_I: The inputs' smoothing, or None.
        dtype: Type of the computation.
    """
    code_IO = (quantized.code_IO ^ _MIDDLE).view(torch.int8)
    if not multiplies_integers(code_IO.device):
        code_IO = code_IO.to(dtype)
    return CodedLinear(
        code_IO=code_IO,
        # Later smoothing may change the stored scales in place.
        scale_O=quantized.scale_GO[0].clone(),
        inverse_I=None if scale_I is None else scale_I.reciprocal(),
    )


def multiplies_integers(device: torch.device) -> bool:
    """Whether 8-bit products are faster than others there."""
    return device.type == "cpu" and bool(torch.cpu._is_vnni_supported())  # noqa: SLF001


def multiply(
    coded: CodedLinear, x: Tensor, columns: Sequence[slice]
) -> tuple[Tensor, ...]:
    """
    Outputs of some of the linears.

    Args:
        coded: Linears side by side.
        x: Their finite inputs, any leading dimensions.
        columns: The outputs of each.

    Returns:
        A tensor for each, in the type of `x`.
    """
    y_TI = x.reshape(-1, x.shape[-1]).to(torch.float32, copy=True)
    if coded.inverse_I is not None:
        y_TI.mul_(coded.inverse_I)
    step_T1 = torch.maximum(
        y_TI.amax(dim=1, keepdim=True), y_TI.amin(dim=1, keepdim=True).neg_()
    )
    step_T1.div_(INT8_MAX).clamp_min_(MIN_STEP)
    code_TI = y_TI.mul_(step_T1.reciprocal()).round_().to(coded.code_IO.dtype)
    whole = coded.code_IO.dtype == torch.int8
    sum_TO = (torch._int_mm if whole else torch.mm)(code_TI, coded.code_IO)  # noqa: SLF001
    outputs = []
    for part in columns:
        y_TO = sum_TO[:, part].to(torch.float32).mul_(step_T1)
        y_TO = y_TO.mul_(coded.scale_O[part]).to(x.dtype)
        outputs.append(y_TO.view(*x.shape[:-1], y_TO.shape[1]))
    return tuple(outputs)
