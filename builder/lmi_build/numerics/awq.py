"""
AWQ: scaling up the input channels that matter before their weights are rounded.

Rounding moves a weight by up to half a step, and the step belongs to a whole group of
channels. A channel scaled by s > 1 before rounding, its input divided by s, keeps the
step (unless it becomes the group's largest) but sees its error divided by s. AWQ (Lin
et al. 2023, section 3.2) scales by how large the inputs are, s = mean|x|^a, and finds
a by trying: 0 is no scaling, 1 gives all channels equal inputs. AutoAWQ divides by
the weights' own size as well, s = mean|x|^a / mean|w|^(1 - a), with |w| counted as a
share of its group's largest.

What is done beyond the paper:

- No forward pass. The error of the outputs on all calibration tokens is
  trace(D' H D) with D = W - Q(s W) / s and H the mean of X' X, so every candidate is
  judged by the exact error, with products of the layer's own size.
- Candidates are screened on a few outputs, evenly spaced, unclipped; the best of them
  are judged on more outputs, clipped as they will be. No scaling is always judged.
- Root mean squares, the diagonal of H, are tried beside the mean magnitudes.
- Clipping is searched group after group by the exact error of the whole layer: with
  all other groups as they are, a change of one group's error by M costs
  2 M' (H D) + M' H_gg M, and one product updates H D for the next. On 11 linears of
  SmolLM2 that leaves 0.71 of the error that clipping weighted by H's diagonal leaves,
  and 0.78 on tokens not calibrated on.
- Scales for GPTQ are others. GPTQ repays most of a channel's error by the channels
  after it; what is left costs 1 / U_jj^2 (see gptq.py), not H_jj, and that varies far
  less between channels. Scales made of H spoil GPTQ (1.07 of its error on the same
  linears); made of those prices they help it (0.38 to 0.98).

Shape suffixes: I input channels, O output channels, G groups of I, g channels of one
group, C screened outputs.

Sources: Lin et al. 2023, arXiv:2306.00978, section 3.2 and 5; AutoAWQ 0.2.9,
awq/quantize/quantizer.py `_compute_best_scale`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.numerics.gptq import Quantized, hessian_error, inverse_factor
from lmi_build.numerics.grids import (
    Grid,
    dequantize,
    fit_range,
    quantize,
    search_scales,
)
from lmi_build.numerics.scaling import (
    scale_problem,
    tie_mean,
    usable_scales,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Exponents tried, the grid of the paper.
RATIOS = tuple(step / 20 for step in range(20))
# The error has one valley along the exponent: every fourth is tried, then the two
# beside the best at half the distance, and again.
SCREEN_STRIDES = (4, 2, 1)
# Shares of the outputs that screen all candidates, and that judge the best of them;
# few outputs carry much of the error, so a wide layer needs more of them.
SCREEN_SHARE, JUDGE_SHARE = 1 / 16, 1 / 8
# Outputs that judge at least.
MIN_OUTPUTS = 96
NUM_FINALISTS = 4
# Exponents tried for GPTQ: of the price of an error, of the share of a weight.
PRICE_RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
SHARE_RATIOS = (0.0, 0.25, 0.5, 0.75)
# Clipping tried while scales for GPTQ are judged; it searches more finely itself.
PRICE_CLIPS = (1.0, 0.9, 0.8)
# Shares of a group's range tried as clipping.
CLIPS = tuple(1.0 - 0.05 * step for step in range(9))
# Rounds of exact clipping; a third gains another percent.
CLIP_ROUNDS = 2
# AutoAWQ's guard for channels whose weights are all but zero.
_WEIGHT_FLOOR = 1e-4


def search_awq_scales(
    w_IO: Tensor,
    h_II: Tensor,
    mean_abs_I: Tensor,
    *,
    grid: Grid,
    tie_I: Tensor | None = None,
) -> Tensor:
    """
    The scales of input channels with the least error after rounding to nearest.

    Args:
        w_IO: float32 weights of all linears that share the input, side by side.
        h_II: float32 mean of X' X.
        mean_abs_I: Mean magnitude of each input channel.
        grid: The grid; its `group_size` divides I.
        tie_I: int64, channels with equal values share their scale.

    Returns:
        float32 scales, positive and bounded; all 1 where nothing is better.
    """
    screen_IC = spread_outputs(w_IO, SCREEN_SHARE)
    live_I = (mean_abs_I > 0) & (w_IO != 0).any(dim=1)
    screened: list[tuple[float, Tensor]] = []
    for family in _families(w_IO, h_II, mean_abs_I, grid=grid, tie_I=tie_I):
        errors: dict[int, float] = {}
        for stride in SCREEN_STRIDES:
            for at in _around(errors, stride):
                s_I = usable_scales(family(RATIOS[at]), live_I, tie_I)
                errors[at] = rounding_error(screen_IC, h_II, s_I, grid=grid)
                screened.append((errors[at], s_I))
    screened.sort(key=lambda pair: pair[0])
    finalists = [torch.ones_like(mean_abs_I)]
    finalists += [s_I for _, s_I in screened[:NUM_FINALISTS]]
    judge_IC = spread_outputs(w_IO, JUDGE_SHARE)
    judged = [
        float(awq(judge_IC, h_II, s_I, grid=grid).error_O.sum()) for s_I in finalists
    ]
    return finalists[judged.index(min(judged))]


def _around(errors: dict[int, float], stride: int) -> list[int]:
    """Places in `RATIOS` to try next: all at a stride, or those beside the best."""
    if not errors:
        return list(range(0, len(RATIOS), stride))
    best = min(errors, key=errors.__getitem__)
    beside = (best - stride, best + stride)
    return [at for at in beside if 0 <= at < len(RATIOS) and at not in errors]


def _families(
    w_IO: Tensor,
    h_II: Tensor,
    mean_abs_I: Tensor,
    *,
    grid: Grid,
    tie_I: Tensor | None,
) -> tuple[Callable[[float], Tensor], ...]:
    """Scales by exponent: the paper's, of root mean squares, and AutoAWQ's."""
    root_I = tie_mean(h_II.diagonal().clamp_min(0), tie_I).sqrt()
    mean_I = tie_mean(mean_abs_I, tie_I)
    share_I = tie_mean(_weight_share(w_IO, grid.group_size), tie_I) + _WEIGHT_FLOOR
    return (
        lambda ratio: root_I**ratio,
        lambda ratio: mean_I**ratio / share_I ** (1 - ratio),
    )


def search_gptq_scales(
    w_IO: Tensor,
    h_II: Tensor,
    *,
    grid: Grid,
    desc_act: bool,
    damp_percent: float,
    tie_I: Tensor | None = None,
) -> Tensor:
    """
    The scales of input channels with the least error expected of GPTQ.

    GPTQ's error is the sum over channels of a rounding error times its price; the
    weights it rounds are moved ones, but spread like those of the layer, so rounding
    these tells which scales are good. One factorization, no other products.

    Args:
        w_IO: float32 weights of all linears that share the input, side by side.
        h_II: float32 mean of X' X; left alone.
        grid: The grid; its `group_size` divides I.
        desc_act: As GPTQ will visit the channels.
        damp_percent: Share of H's mean diagonal to add.
        tie_I: int64, channels with equal values share their scale.

    Returns:
        float32 scales, positive and bounded; all 1 where nothing promises more.

    Raises:
        NotPositiveDefinite: H is not a product X' X.
    """
    price_I = error_prices(h_II, desc_act=desc_act, damp_percent=damp_percent)
    live_I = (h_II.diagonal() > 0) & (w_IO != 0).any(dim=1)
    root_I = tie_mean(price_I, tie_I).sqrt()
    share_I = tie_mean(_weight_share(w_IO, grid.group_size), tie_I) + _WEIGHT_FLOOR
    wishes = [
        root_I**ratio / share_I**other
        for ratio in PRICE_RATIOS
        for other in SHARE_RATIOS
    ]
    candidates = [usable_scales(wish_I, live_I, tie_I) for wish_I in wishes]
    screen_IC = spread_outputs(w_IO, SCREEN_SHARE)
    errors = [_priced_error(screen_IC, price_I, s_I, grid=grid) for s_I in candidates]
    return candidates[errors.index(min(errors))]


def error_prices(h_II: Tensor, *, desc_act: bool, damp_percent: float) -> Tensor:
    """
    What a squared error of each channel costs after GPTQ repaid it, 1 / U_jj^2.

    Args:
        h_II: float32 mean of X' X; left alone.
        desc_act: Whether channels are visited by falling H_jj.
        damp_percent: Share of H's mean diagonal to add.

    Returns:
        float32 [I].
    """
    diagonal_I = h_II.diagonal()
    order_P = torch.arange(len(diagonal_I), device=h_II.device)
    if desc_act:
        order_P = torch.argsort(diagonal_I, descending=True, stable=True)
    u_PP, _ = inverse_factor(h_II.clone(), order_P, damp_percent)
    return u_PP.diagonal().square().reciprocal()[torch.argsort(order_P)]


def _priced_error(w_IO: Tensor, price_I: Tensor, s_I: Tensor, *, grid: Grid) -> float:
    scaled_IO, scaled_I = w_IO * s_I[:, None], price_I / s_I.square()
    scale_GO, zero_GO = search_scales(
        scaled_IO, scaled_I, grid=grid, shrinks=PRICE_CLIPS
    )
    code_IO = round_codes(scaled_IO, scale_GO, zero_GO, grid=grid)
    miss_IO = dequantize(code_IO, scale_GO, zero_GO).sub_(scaled_IO)
    return float((scaled_I @ miss_IO.square_()).sum())


def _weight_share(w_IO: Tensor, group_size: int) -> Tensor:
    """Mean over outputs of |w| as a share of its group's largest."""
    w_GgO = w_IO.view(-1, group_size, w_IO.shape[1]).abs()
    top_G1O = w_GgO.amax(dim=1, keepdim=True).clamp_min(1e-30)
    return (w_GgO / top_G1O).mean(dim=2).view(-1)


def spread_outputs(w_IO: Tensor, share: float) -> Tensor:
    """A share of the outputs, evenly spaced, at least `MIN_OUTPUTS` or all."""
    num_outputs = w_IO.shape[1]
    count = max(MIN_OUTPUTS, int(num_outputs * share))
    return w_IO[:, :: max(1, num_outputs // count)].contiguous()


def rounding_error(w_IO: Tensor, h_II: Tensor, s_I: Tensor, *, grid: Grid) -> float:
    """
    Error of the outputs, trace(D' H D), with weights scaled and rounded unclipped.

    Args:
        w_IO: float32 weights.
        h_II: float32 mean of X' X.
        s_I: Scales.
        grid: The grid.
    """
    num_outputs = w_IO.shape[1]
    w_GgO = (w_IO * s_I[:, None]).view(-1, grid.group_size, num_outputs)
    scale_GO, zero_GO = fit_range(
        w_GgO.amin(dim=1).clamp_max_(0), w_GgO.amax(dim=1).clamp_min_(0), grid
    )
    scale_G1O, zero_G1O = scale_GO[:, None], zero_GO[:, None]
    code_GgO = quantize(w_GgO, scale_G1O, zero_G1O, max_code=grid.max_code)
    miss_GgO = code_GgO.sub_(zero_G1O).mul_(scale_G1O).sub_(w_GgO)
    miss_IO = miss_GgO.view_as(w_IO).div_(s_I[:, None])
    return float(hessian_error(miss_IO, h_II).sum())


def awq(
    w_IO: Tensor, h_II: Tensor, s_I: Tensor | None, *, grid: Grid, clip: bool = True
) -> Quantized:
    """
    Round a scaled layer to nearest.

    Args:
        w_IO: float32 weights, not scaled, side by side.
        h_II: float32 mean of X' X.
        s_I: Scales of the input channels, from `search_awq_scales`; None where they are
            in the weights and in H already.
        grid: The grid.
        clip: Search how much of each group's range is cut off.

    Returns:
        Codes of s W; errors are those of the layer's outputs.
    """
    scaled_IO, scaled_II = w_IO, h_II
    if s_I is not None:
        scaled_IO, scaled_II = scale_problem(w_IO, h_II, s_I)
    diagonal_I = scaled_II.diagonal()
    scale_GO, zero_GO = search_scales(
        scaled_IO,
        diagonal_I if clip else torch.ones_like(diagonal_I),
        grid=grid,
        shrinks=CLIPS if clip else (1.0,),
    )
    for _ in range(CLIP_ROUNDS if clip else 0):
        refine_clipping(scaled_IO, scaled_II, scale_GO, zero_GO, grid=grid)
    code_IO = round_codes(scaled_IO, scale_GO, zero_GO, grid=grid).to(torch.uint8)
    miss_IO = dequantize(code_IO, scale_GO, zero_GO).sub_(scaled_IO)
    return Quantized(
        code_IO=code_IO,
        scale_GO=scale_GO,
        zero_GO=zero_GO.to(torch.uint8),
        error_O=hessian_error(miss_IO, scaled_II),
        power_O=hessian_error(w_IO, h_II),
        damp_percent=0.0,
    )


def round_codes(
    w_IO: Tensor, scale_GO: Tensor, zero_GO: Tensor, *, grid: Grid
) -> Tensor:
    """The codes nearest to weights, float32 [I, O]."""
    w_GgO = w_IO.view(-1, grid.group_size, w_IO.shape[1])
    scale_G1O, zero_G1O = scale_GO[:, None], zero_GO[:, None]
    code_GgO = quantize(w_GgO, scale_G1O, zero_G1O, max_code=grid.max_code)
    return code_GgO.view_as(w_IO)


def refine_clipping(
    w_IO: Tensor, h_II: Tensor, scale_GO: Tensor, zero_GO: Tensor, *, grid: Grid
) -> None:
    """
    Choose each group's clipping by the error of the whole layer, group after group.

    No choice raises the error of rounding to nearest; where none lowers it, the scale
    stays.

    Args:
        w_IO: float32 weights.
        h_II: float32 mean of X' X.
        scale_GO: float32 scales; changed in place.
        zero_GO: float32 zero points; changed in place.
        grid: The grid.
    """
    group = grid.group_size
    code_IO = round_codes(w_IO, scale_GO, zero_GO, grid=grid)
    miss_IO = dequantize(code_IO, scale_GO, zero_GO).sub_(w_IO)
    del code_IO
    pull_IO = h_II @ miss_IO
    for index in range(scale_GO.shape[0]):
        rows = slice(index * group, (index + 1) * group)
        w_gO, h_gg = w_IO[rows], h_II[rows, rows]
        low_O, high_O = w_gO.amin(dim=0).clamp_max_(0), w_gO.amax(dim=0).clamp_min_(0)
        best_O = torch.zeros_like(low_O)
        move_gO = torch.zeros_like(w_gO)
        for share in CLIPS:
            scale_O, zero_O = fit_range(low_O * share, high_O * share, grid)
            step_gO = quantize(w_gO, scale_O, zero_O, max_code=grid.max_code)
            step_gO.sub_(zero_O).mul_(scale_O).sub_(w_gO).sub_(miss_IO[rows])
            cost_gO = (h_gg @ step_gO).add_(pull_IO[rows], alpha=2).mul_(step_gO)
            cost_O = cost_gO.sum(dim=0)
            better_O = cost_O < best_O
            best_O = torch.where(better_O, cost_O, best_O)
            scale_GO[index] = torch.where(better_O, scale_O, scale_GO[index])
            zero_GO[index] = torch.where(better_O, zero_O, zero_GO[index])
            move_gO = torch.where(better_O, step_gO, move_gO)
        pull_IO.addmm_(h_II[:, rows], move_gO)
