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

Where the strength is searched, a second family is tried as well: the outlier alone
says little of what a channel costs, so s = sqrt(max|x| rms(x))^a / |w_i|^b, with the
norm of the row instead of its largest weight, and both exponents free.

Measured on 11 linears of SmolLM2, as the relative error of tokens that were not
searched on, against no smoothing: a strength of 0.5 everywhere leaves 0.48, what this
search chooses 0.28. Rounding the weights by GPTQ at 8 bits, where there is an H to do
it with, takes another quarter off (0.33 to 0.24 of the summed error, measured with the
paper's family alone); searching the steps of weights for less than the full range gains
nothing.

int8 here is what compressed-tensors stores and kernels compute: codes from -128 to
127, a largest magnitude of 127.5 steps for weights, 127 for activations.

Shape suffixes: I input channels, O output channels, T tokens, R sampled tokens.

Sources: Xiao et al. 2022, arXiv:2211.10438, equation 4; compressed-tensors 0.19.0,
quantization/utils/helpers.py `calculate_qparams`; vLLM's `scaled_int8_quant` (127).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmi_build.numerics.awq import spread_outputs
from lmi_build.numerics.scaling import tie_amax, tie_mean, usable_scales

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Each = Callable[[Callable[[Tensor], float], Sequence[Tensor]], list[float]]

INT8_MAX = 127.0
# Largest magnitude of weights in steps, as compressed-tensors divides.
WEIGHT_STEPS = 127.5
ALPHAS = tuple(step / 20 for step in range(21))
# Exponents of the typical input and of the row of W, where the strength is searched.
SIZE_RATIOS = tuple(step / 10 for step in range(3, 11))
NORM_RATIOS = (0.0, 0.25, 0.5, 0.75)
# Tokens that judge scales at most, and the share of outputs whose steps are counted.
SEARCH_ROWS, SEARCH_SHARE = 512, 1 / 8
# All scales are judged by so many of these tokens first; those within the margin of the
# best are judged by all.
SCREEN_ROWS, SCREEN_MARGIN = 128, 1.1
MIN_STEP = 2.0**-40
# Shares of absmax tried as the range of a static scale.
STATIC_SHARES = tuple(2.0 ** (-step / 8) for step in range(25))


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoothing:
    """
    What was decided for linears that share an input.

    Args:
        s_I: float32 scales: the input is divided, the weights are multiplied by them.
        alpha: The exponent of the inputs that made them; None is no smoothing.
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
    (s_I,) = _paper_scales(absmax_I, w_IO, (alpha,), tie_I)
    return s_I


def _paper_scales(
    absmax_I: Tensor, w_IO: Tensor, alphas: tuple[float, ...], tie_I: Tensor | None
) -> list[Tensor]:
    weight_I = torch.maximum(w_IO.amax(dim=1), w_IO.amin(dim=1).neg_())
    live_I = (absmax_I > 0) & (weight_I > 0)
    x_I, weight_I = tie_amax(absmax_I, tie_I), tie_amax(weight_I, tie_I)
    wishes = (x_I**alpha / weight_I ** (1 - alpha) for alpha in alphas)
    return [usable_scales(wish_I, live_I, tie_I) for wish_I in wishes]


def search_smoothing(
    w_IO: Tensor,
    sample_RI: Tensor,
    absmax_I: Tensor,
    *,
    static: bool,
    alpha: float | None = None,
    tie_I: Tensor | None = None,
    each: Each = lambda judge, scales: list(map(judge, scales)),
) -> Smoothing:
    """
    The strength with the least expected error, or scales of a given strength.

    Args:
        w_IO: float32 weights of all linears that share the input, side by side.
        sample_RI: Some tokens' inputs.
        absmax_I: Largest magnitude of each input channel over all tokens.
        static: One step for all tokens instead of one per token.
        alpha: A strength that is not to be searched.
        tie_I: int64, channels with equal values share their scale.
        each: Judges scales one after another, or several at a time.

    Returns:
        The scales, with the errors expected with and without them.
    """
    stride = max(1, -(-sample_RI.shape[0] // SEARCH_ROWS))
    x_RI = sample_RI[::stride].to(torch.float32)
    row_I = w_IO.square().sum(dim=1)
    # What follows is normed again, so a token counts by its relative error: a few
    # tokens with huge inputs must not decide for all others.
    power_R1 = x_RI.square().mean(dim=1, keepdim=True)
    weight_R1 = torch.where(power_R1 > 0, power_R1.mean() / power_R1, power_R1)
    square_I = (weight_R1 * x_RI.square()).mean(dim=0)
    magnitude_IC = spread_outputs(w_IO, SEARCH_SHARE).abs_()
    few = w_IO.shape[1] / max(1, magnitude_IC.shape[1])

    def expect(s_I: Tensor, rows: slice = slice(None)) -> float:
        step = float((absmax_I / s_I).amax()) / INT8_MAX if static else None
        from_x, from_w = expected_noise(
            magnitude_IC, x_RI[rows], weight_R1[rows], square_I, row_I, s_I, step=step
        )
        return from_x + few * from_w

    plain_I = torch.ones_like(absmax_I)
    found = [
        (None, plain_I),
        *_candidates(w_IO, row_I, absmax_I, square_I, alpha, tie_I),
    ]
    if alpha is None and len(x_RI) > SCREEN_ROWS:
        screen = slice(None, None, -(-len(x_RI) // SCREEN_ROWS))
        rough = each(lambda s_I: expect(s_I, screen), [s_I for _, s_I in found[1:]])
        limit = SCREEN_MARGIN * min(rough)
        near = [
            one for one, error in zip(found[1:], rough, strict=True) if error <= limit
        ]
        found[1:] = near
    errors = each(expect, [s_I for _, s_I in found])
    best = errors.index(min(errors)) if alpha is None else 1
    return Smoothing(
        s_I=found[best][1],
        alpha=found[best][0],
        error=errors[best],
        plain_error=errors[0],
    )


def _candidates(
    w_IO: Tensor,
    row_I: Tensor,
    absmax_I: Tensor,
    square_I: Tensor,
    alpha: float | None,
    tie_I: Tensor | None,
) -> Iterator[tuple[float | None, Tensor]]:
    """Strengths with their scales: the paper's, then those of typical sizes."""
    alphas = ALPHAS if alpha is None else (alpha,)
    yield from zip(alphas, _paper_scales(absmax_I, w_IO, alphas, tie_I), strict=True)
    if alpha is not None:
        return
    live_I = (absmax_I > 0) & (row_I > 0)
    root_I = tie_mean(square_I, tie_I).sqrt()
    size_I = (tie_amax(absmax_I, tie_I) * root_I).sqrt()
    norm_I = tie_mean(row_I, tie_I).sqrt()
    for strength in SIZE_RATIOS:
        for other in NORM_RATIOS:
            wish_I = size_I**strength / norm_I**other
            yield strength, usable_scales(wish_I, live_I, tie_I)


def expected_noise(
    magnitude_IO: Tensor,
    x_RI: Tensor,
    weight_R1: Tensor,
    mean_square_I: Tensor,
    row_I: Tensor,
    s_I: Tensor,
    *,
    step: float | None,
) -> tuple[float, float]:
    """
    The noise model: expected squared error of all outputs, per token.

    Args:
        magnitude_IO: float32 magnitudes of the weights whose steps are counted.
        x_RI: float32 sampled inputs.
        weight_R1: What the error of each of them counts.
        mean_square_I: Mean square of each input channel, tokens weighted so.
        row_I: Squared norm of each row of W.
        s_I: Scales.
        step: Step of the activations; None is one per token.

    Returns:
        What rounding the activations adds, and what rounding these weights adds.
    """
    smooth_RI = x_RI / s_I
    if step is None:
        rounded_RI = fake_quantize_per_token(smooth_RI)
    else:
        rounded_RI = fake_quantize_static(smooth_RI, step)
    noise_RI = rounded_RI.sub_(smooth_RI).square_()
    noise_I = noise_RI.T @ weight_R1[:, 0] / max(1, len(weight_R1))
    from_x = (noise_I * s_I.square() * row_I).sum()
    step_O = (magnitude_IO * s_I[:, None]).amax(dim=0) / WEIGHT_STEPS
    from_w = step_O.square().sum() / 12 * (mean_square_I / s_I.square()).sum()
    return float(from_x), float(from_w)


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
