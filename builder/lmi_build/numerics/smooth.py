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
norm of the row instead of its largest weight, and both exponents free. Exponents two or
three places apart are judged first, then those beside the best two: the error is smooth
in the exponents, so that is as good as judging all (40 linears of SmolLM2: 0.998 of the
error that judging all of them left).

Measured on 11 linears of SmolLM2, as the relative error of tokens that were not
searched on, against no smoothing: a strength of 0.5 everywhere leaves 0.48, what this
search chooses 0.28. Rounding the weights by GPTQ at 8 bits, where there is an H to do
it with, takes another quarter off (0.33 to 0.24 of the summed error, measured with the
paper's family alone); searching the steps of weights for less than the full range gains
nothing.

int8 here is what compressed-tensors stores and kernels compute: codes from -128 to
127, a largest magnitude of 127.5 steps for weights, 127 for activations.

Shape suffixes: I input channels, O output channels, T tokens, R sampled tokens,
C sampled outputs.

Sources: Xiao et al. 2022, arXiv:2211.10438, equation 4; compressed-tensors 0.19.0,
quantization/utils/helpers.py `calculate_qparams`; vLLM's `scaled_int8_quant` (127).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmi_build.numerics.activation_steps import INT8_MAX, MIN_STEP
from lmi_build.numerics.awq import spread_outputs
from lmi_build.numerics.scaling import tie_amax, tie_mean, usable_scales

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Each = Callable[[Callable[[Tensor], float], Sequence[Tensor]], list[float]]

# Largest magnitude of weights in steps, as compressed-tensors divides.
WEIGHT_STEPS = 127.5
ALPHAS = tuple(step / 20 for step in range(21))
# Exponents of the typical input and of the row of W, where the strength is searched.
SIZE_RATIOS = tuple(step / 10 for step in range(3, 11))
NORM_RATIOS = (0.0, 0.25, 0.5, 0.75)
# Tokens that judge scales at most, and the share of outputs whose steps are counted.
SEARCH_ROWS, SEARCH_SHARE = 256, 1 / 8
# So many of those judged first are refined.
REFINED = 2


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
    weight_I = _largest(w_IO)
    live_I = (absmax_I > 0) & (weight_I > 0)
    x_I, weight_I = tie_amax(absmax_I, tie_I), tie_amax(weight_I, tie_I)
    return usable_scales(x_I**alpha / weight_I ** (1 - alpha), live_I, tie_I)


def _largest(w_IO: Tensor) -> Tensor:
    """Largest magnitude of each row, without a copy of all magnitudes."""
    return torch.maximum(w_IO.amax(dim=1), w_IO.amin(dim=1).neg_())


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
    noise = _Noise.of(w_IO, sample_RI, absmax_I, static=static)
    plain_I = torch.ones_like(absmax_I)
    if alpha is not None:
        s_I = smoothing_scales(absmax_I, w_IO, alpha=alpha, tie_I=tie_I)
        error, plain_error = each(noise.expect, (s_I, plain_I))
        return Smoothing(s_I=s_I, alpha=alpha, error=error, plain_error=plain_error)
    wishes = _Wishes.of(w_IO, noise.row_I, absmax_I, noise.square_I, tie_I)
    judged: dict[_Point, tuple[float, Tensor]] = {}

    def judge(points: Iterable[_Point]) -> None:
        new = [point for point in dict.fromkeys(points) if point not in judged]
        scales = [wishes.scales(point) for point in new]
        errors = each(noise.expect, scales)
        judged.update(zip(new, zip(errors, scales, strict=True), strict=True))

    judge(_SPREAD)
    best = sorted(judged, key=lambda point: judged[point][0])[:REFINED]
    judge(near for point in best for near in _beside(point))
    point = min(judged, key=lambda point: judged[point][0])
    error, s_I = judged[point]
    plain_error = noise.expect(plain_I)
    return Smoothing(
        s_I=s_I, alpha=point.strength, error=error, plain_error=plain_error
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Noise:
    """
    What the error of a scale is asked of.

    Args:
        x_RI: Sampled tokens.
        weight_R1: How much each of them counts.
        square_I: Weighted mean squares of their channels.
        row_I: Squared norms of the rows of W.
        magnitude_IC: Magnitudes of some outputs C of W.
        few: Outputs of W for each of those.
        absmax_I: Largest magnitudes, where one step serves all tokens; else None.
    """

    x_RI: Tensor
    weight_R1: Tensor
    square_I: Tensor
    row_I: Tensor
    magnitude_IC: Tensor
    few: float
    absmax_I: Tensor | None

    @classmethod
    def of(
        cls, w_IO: Tensor, sample_RI: Tensor, absmax_I: Tensor, *, static: bool
    ) -> _Noise:
        """Look at the sample and the weights once."""
        stride = max(1, -(-sample_RI.shape[0] // SEARCH_ROWS))
        x_RI = sample_RI[::stride].to(torch.float32)
        row_I = w_IO.square().sum(dim=1)
        # What follows is normed again, so a token counts by its relative error: a few
        # tokens with huge inputs must not decide for all others.
        power_R1 = x_RI.square().mean(dim=1, keepdim=True)
        weight_R1 = torch.where(power_R1 > 0, power_R1.mean() / power_R1, power_R1)
        # Not in place: where all outputs are looked at, they are the caller's.
        magnitude_IC = spread_outputs(w_IO, SEARCH_SHARE).abs()
        return cls(
            x_RI=x_RI,
            weight_R1=weight_R1,
            square_I=(weight_R1 * x_RI.square()).mean(dim=0),
            row_I=row_I,
            magnitude_IC=magnitude_IC,
            few=w_IO.shape[1] / max(1, magnitude_IC.shape[1]),
            absmax_I=absmax_I if static else None,
        )

    def expect(self, s_I: Tensor) -> float:
        """The squared error of the outputs per token that scales leave."""
        step = None
        if self.absmax_I is not None:
            step = float((self.absmax_I / s_I).amax()) / INT8_MAX
        from_x, from_w = expected_noise(
            self.magnitude_IC,
            self.x_RI,
            self.weight_R1,
            self.square_I,
            self.row_I,
            s_I,
            step=step,
        )
        return from_x + self.few * from_w


@dataclass(frozen=True, kw_only=True, slots=True)
class _Point:
    """
    Exponents of one candidate, by their place in their list.

    Args:
        x: Of the inputs, in `ALPHAS` or, where `w` is given, in `SIZE_RATIOS`.
        w: Of the norms, in `NORM_RATIOS`; None is the paper's.
    """

    x: int
    w: int | None = None

    @property
    def strength(self) -> float:
        """The exponent of the inputs."""
        return ALPHAS[self.x] if self.w is None else SIZE_RATIOS[self.x]


_SPREAD = (
    *(_Point(x=x) for x in range(1, len(ALPHAS), 3)),
    *(
        _Point(x=x, w=w)
        for x in range(1, len(SIZE_RATIOS), 2)
        for w in range(0, len(NORM_RATIOS), 2)
    ),
)


def _beside(point: _Point) -> Iterator[_Point]:
    """The points one place away, in their own family."""
    places = (point.x - 1, point.x, point.x + 1)
    if point.w is None:
        yield from (_Point(x=x) for x in places if 0 <= x < len(ALPHAS))
        return
    for x in places:
        for w in (point.w - 1, point.w, point.w + 1):
            if 0 <= x < len(SIZE_RATIOS) and 0 <= w < len(NORM_RATIOS):
                yield _Point(x=x, w=w)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wishes:
    """
    What candidates are made of.

    Args:
        absmax_I: Largest magnitudes of the inputs, ties heeded like in all others.
        weight_I: Largest magnitudes of the rows of W.
        size_I: Typical magnitudes of the inputs.
        norm_I: Norms of the rows.
        live_I: Channels that carry anything.
        tie_I: Channels with equal values share their scale.
    """

    absmax_I: Tensor
    weight_I: Tensor
    size_I: Tensor
    norm_I: Tensor
    live_I: Tensor
    tie_I: Tensor | None

    @classmethod
    def of(
        cls,
        w_IO: Tensor,
        row_I: Tensor,
        absmax_I: Tensor,
        square_I: Tensor,
        tie_I: Tensor | None,
    ) -> _Wishes:
        """Gather them."""
        weight_I = _largest(w_IO)
        live_I = (absmax_I > 0) & (weight_I > 0)
        absmax_I = tie_amax(absmax_I, tie_I)
        return cls(
            absmax_I=absmax_I,
            weight_I=tie_amax(weight_I, tie_I),
            size_I=(absmax_I * tie_mean(square_I, tie_I).sqrt()).sqrt(),
            norm_I=tie_mean(row_I, tie_I).sqrt(),
            live_I=live_I,
            tie_I=tie_I,
        )

    def scales(self, point: _Point) -> Tensor:
        """The scales of one candidate."""
        if point.w is None:
            alpha = point.strength
            wish_I = self.absmax_I**alpha / self.weight_I ** (1 - alpha)
        else:
            wish_I = self.size_I**point.strength / self.norm_I ** NORM_RATIOS[point.w]
        return usable_scales(wish_I, self.live_I, self.tie_I)


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
    code_RI = x_RI * s_I.reciprocal()
    if step is None:
        step_R = torch.maximum(code_RI.amax(dim=1), code_RI.amin(dim=1).neg_())
        step_R = step_R.div_(INT8_MAX).clamp_min_(MIN_STEP)
        code_RI.mul_(step_R.reciprocal()[:, None])
        miss_RI = code_RI.round().sub_(code_RI).square_()
    else:
        step_R = torch.full_like(weight_R1[:, 0], step)
        code_RI.mul_(1 / step)
        miss_RI = code_RI.round().clamp_(-128, 127).sub_(code_RI).square_()
    noise_I = miss_RI.T @ (weight_R1[:, 0] * step_R.square())
    from_x = (noise_I * s_I.square() * row_I).sum() / max(1, len(weight_R1))
    step_O = (magnitude_IO * s_I[:, None]).amax(dim=0) / WEIGHT_STEPS
    from_w = step_O.square().sum() / 12 * (mean_square_I / s_I.square()).sum()
    return float(from_x), float(from_w)
