"""
Rounding to int8 as Transformers NeuronX does it when it loads a float model.

Each output channel has one scale, its largest absolute weight over 127; a weight is
divided by it in float32, rounded to the nearest code with ties to the even one, and
clamped. The code times the scale is what the graphs compute with.

Source: transformers-neuronx 0.9 to 0.13, `quantize.py`, `vector_dynamic` with `s8`.

Shape suffixes: I input channels, O output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
SMALLEST = -128


def quantize_s8(w_OI: Tensor) -> tuple[Tensor, Tensor]:
    """
    Codes and scales of one linear.

    Args:
        w_OI: Weights of any float type.

    Returns:
        int8 `code_OI`, and float32 `scale_O`; a row of zeros has scale 0.
    """
    w_OI = w_OI.float()
    scale_O = w_OI.abs().amax(dim=1) / LARGEST
    # A row of zeros would be divided by zero; its codes do not matter.
    divisor_O = torch.where(scale_O > 0, scale_O, torch.ones_like(scale_O))
    code_OI = (w_OI / divisor_O[:, None]).round_().clamp_(SMALLEST, LARGEST)
    return code_OI.to(torch.int8), scale_O


def rounded_s8(w_OI: Tensor) -> Tensor:
    """
    The float32 weights that the rounded ones mean.

    Args:
        w_OI: Weights of any float type.
    """
    code_OI, scale_O = quantize_s8(w_OI)
    return code_OI.float() * scale_O[:, None]
