"""
Steps of 8-bit activations: one for each token as it comes, or one stored.

Shape suffixes: I input channels, T tokens, R sampled tokens.

Sources: vLLM's `scaled_int8_quant`, for 127 as the largest magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor

INT8_MAX = 127.0
MIN_STEP = 2.0**-40
# Shares of absmax tried as the range of a static scale.
STATIC_SHARES = tuple(2.0 ** (-step / 8) for step in range(25))


def fake_quantize_per_token(x_TI: Tensor) -> Tensor:
    """Inputs as a kernel with one dynamic step per token sees them, float32."""
    wide_TI = x_TI.to(torch.float32)
    step_T1 = wide_TI.abs().amax(dim=-1, keepdim=True).div_(INT8_MAX)
    step_T1.clamp_min_(MIN_STEP)
    # No quotient is beyond 127 by more than its rounding.
    return (wide_TI / step_T1).round_().mul_(step_T1)


def fake_quantize_static(x_TI: Tensor, scale: Tensor | float) -> Tensor:
    """Inputs as a kernel with one stored step sees them, float32."""
    wide_TI = x_TI.to(torch.float32)
    return (wide_TI / scale).round_().clamp_(-128, 127).mul_(scale)


def static_scale(
    sample_RI: Tensor, absmax: float, *, weight_I: Tensor | None = None
) -> float:
    """
    The step of a whole tensor with the least squared error on a sample.

    Args:
        sample_RI: Inputs as the layer sees them, already divided by their scales.
        absmax: Largest magnitude over all tokens, the sampled ones and the others.
        weight_I: What a squared error in each channel costs; 1 where None.

    Returns:
        A step, at most absmax / 127.
    """
    x_RI = sample_RI.to(torch.float32)
    best_error, best_step = float("inf"), max(absmax / INT8_MAX, MIN_STEP)
    for share in STATIC_SHARES:
        step = max(absmax * share / INT8_MAX, MIN_STEP)
        miss_RI = fake_quantize_static(x_RI, step).sub_(x_RI).square_()
        if weight_I is not None:
            miss_RI *= weight_I
        error = float(miss_RI.sum(dtype=torch.float64))
        if error < best_error:
            best_error, best_step = error, step
    return best_step
