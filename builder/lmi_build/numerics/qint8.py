"""
Rounding to int8 as NxD Inference does it before it compiles a model.

Each output channel has one scale, its largest absolute weight over 127 but at least the
spacing of float32 at one; a weight is multiplied by its reciprocal in float32, rounded
to the nearest code with ties to the even one, and clamped.

Source: neuronx-distributed 0.10 to 0.15, `PerChannelAbsMaxObserver` in
quantization/observer.py and `_quantize_weight` of PyTorch, which calls
`torch.quantize_per_channel`.

Shape suffixes: I input channels, O output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
SMALLEST = -128


def quantize_qint8(w_OI: Tensor) -> tuple[Tensor, Tensor]:
    """
    Codes and scales of one linear.

    Args:
        w_OI: Weights of any float type.

    Returns:
        int8 `code_OI`, and float32 `scale_O`.
    """
    w_OI = w_OI.float()
    scale_O = w_OI.abs().amax(dim=1) / LARGEST
    scale_O = scale_O.clamp_min(torch.finfo(torch.float32).eps)
    code_OI = (w_OI * (1 / scale_O)[:, None]).round_().clamp_(SMALLEST, LARGEST)
    return code_OI.to(torch.int8), scale_O


def rounded_qint8(w_OI: Tensor) -> Tensor:
    """
    The float32 weights that the rounded ones mean.

    Args:
        w_OI: Weights of any float type.
    """
    code_OI, scale_O = quantize_qint8(w_OI)
    return code_OI.float() * scale_O[:, None]
