"""
SmoothQuant: moving the outliers of activations into the weights before both are int8.

With int8 activations one step serves all channels of a token, so a few channels with
large numbers leave few steps for the others. Weights are even, and a layer may divide
channel i of its input by s_i and multiply row i of W by it. SmoothQuant (Xiao et al.
2022, section 4) takes s_i = max|x_i|^a / max|w_i|^(1 - a): a = 0 makes all rows of W
equally large, a = 1 all channels of x, and in between the difficulty is shared.

How good a scale is, is asked of the noise it leaves, no forward pass needed. Rounding
by a step d adds an error with variance d^2 / 12, independent from number to number, so
    E|dy|^2 = sum_i mean_t(dx_ti^2) |s_i w_i|^2 + sum_o d_o^2/12 sum_i H_ii/s_i^2:
the first sum is the rounding of the activations, taken as it really is on a sample of
tokens (channels far below the step lose what they hold, not d^2 / 12); the second is
that of the weights, one step d_o per output.

Measured on 11 linears of SmolLM2 by the outputs of tokens that were not searched on:
the strength that this model chooses leaves 0.33 of the error without smoothing, the
best strength there is 0.31, a strength of 0.5 everywhere 0.37. Rounding the weights by
GPTQ at 8 bits brings 0.33 down to 0.24, where there is an H to do it with; searching
their steps for less than the full range gains nothing.

int8 here is what compressed-tensors stores and kernels compute: codes from -128 to
127, a largest magnitude of 127.5 steps for weights, 127 for activations.

Shape suffixes: I input channels, O output channels, T tokens, R sampled tokens.

Sources: Xiao et al. 2022, arXiv:2211.10438, equation 4; compressed-tensors 0.19.0,
quantization/utils/helpers.py `calculate_qparams`; vLLM's `scaled_int8_quant` (127).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmi_build.numerics.scaling import tie_amax, usable_scales

INT8_MAX = 127.0
# Largest magnitude of weights in steps, as compressed-tensors divides.
WEIGHT_STEPS = 127.5
ALPHAS = tuple(step / 20 for step in range(21))
MIN_STEP = 2.0**-40
# Shares of absmax tried as the range of a static scale.
STATIC_SHARES = tuple(2.0 ** (-step / 8) for step in range(25))


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoothing:
    """
    What was decided for linears that share an input.

    Args:
        s_I: float32 scales: the input is divided, the weights are multiplied by them.
        alpha: The strength that made them; None is no smoothing.
        error: Expected squared error of the outputs per token.
        plain_error: The same without smoothing.
    """

    s_I: Tensor
    alpha: float | None
    error: float
    plain_error: float


def smoothing_scales(
    absmax_I: Tensor, w_IO: Tensor, *, alpha: float, tie_I: Tensor | None = None
) -> Tensor:
    """
    The scales of the paper.

    Args:
        absmax_I: Largest magnitude of each input channel.
        w_IO: float32 weights of all linears that share the input, side by side.
        alpha: Strength, 0 to 1.
        tie_I: int64, channels with equal values share their scale.

    Returns:
        float32 scales, positive and bounded.
    """
    weight_I = w_IO.abs().amax(dim=1)
    live_I = (absmax_I > 0) & (weight_I > 0)
    x_I, weight_I = tie_amax(absmax_I, tie_I), tie_amax(weight_I, tie_I)
    return usable_scales(x_I**alpha / weight_I ** (1 - alpha), live_I, tie_I)


def search_smoothing(
    w_IO: Tensor,
    sample_RI: Tensor,
    absmax_I: Tensor,
    *,
    static: bool,
    mean_square_I: Tensor | None = None,
    alpha: float | None = None,
    tie_I: Tensor | None = None,
) -> Smoothing:
    """
    The strength with the least expected error, or scales of a given strength.

    Args:
        w_IO: float32 weights of all linears that share the input, side by side.
        sample_RI: Some tokens' inputs.
        absmax_I: Largest magnitude of each input channel over all tokens.
        static: One step for all tokens instead of one per token.
        mean_square_I: Mean square of each input channel, the diagonal of H; the
            sample's own where None.
        alpha: A strength that is not to be searched.
        tie_I: int64, channels with equal values share their scale.

    Returns:
        The scales, with the errors expected with and without them.
    """
    x_RI = sample_RI.to(torch.float32)
    row_I = w_IO.square().sum(dim=1)
    square_I = x_RI.square().mean(dim=0) if mean_square_I is None else mean_square_I
    plain_I = torch.ones_like(absmax_I)

    def expect(s_I: Tensor) -> float:
        step = float((absmax_I / s_I).amax()) / INT8_MAX if static else None
        return expected_error(w_IO, x_RI, square_I, row_I, s_I, step=step)

    plain_error = expect(plain_I)
    best = Smoothing(
        s_I=plain_I, alpha=None, error=plain_error, plain_error=plain_error
    )
    for strength in ALPHAS if alpha is None else (alpha,):
        s_I = smoothing_scales(absmax_I, w_IO, alpha=strength, tie_I=tie_I)
        error = expect(s_I)
        if error < best.error or alpha is not None:
            best = Smoothing(
                s_I=s_I, alpha=strength, error=error, plain_error=plain_error
            )
    return best


def expected_error(
    w_IO: Tensor,
    x_RI: Tensor,
    mean_square_I: Tensor,
    row_I: Tensor,
    s_I: Tensor,
    *,
    step: float | None,
) -> float:
    """
    The noise model: expected squared error of all outputs, per token.

    Args:
        w_IO: float32 weights.
        x_RI: float32 sampled inputs.
        mean_square_I: Mean square of each input channel.
        row_I: Squared norm of each row of W.
        s_I: Scales.
        step: Step of the activations; None is one per token.
    """
    smooth_RI = x_RI / s_I
    if step is None:
        rounded_RI = fake_quantize_per_token(smooth_RI)
    else:
        rounded_RI = fake_quantize_static(smooth_RI, step)
    noise_I = rounded_RI.sub_(smooth_RI).square_().mean(dim=0)
    from_x = (noise_I * s_I.square() * row_I).sum()
    step_O = (w_IO.abs() * s_I[:, None]).amax(dim=0) / WEIGHT_STEPS
    from_w = step_O.square().sum() / 12 * (mean_square_I / s_I.square()).sum()
    return float(from_x + from_w)


def fake_quantize_per_token(x_TI: Tensor) -> Tensor:
    """Inputs as a kernel with one dynamic step per token sees them, float32."""
    wide_TI = x_TI.to(torch.float32)
    step_T1 = wide_TI.abs().amax(dim=-1, keepdim=True).div_(INT8_MAX)
    step_T1.clamp_min_(MIN_STEP)
    return (wide_TI / step_T1).round_().clamp_(-128, 127).mul_(step_T1)


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
