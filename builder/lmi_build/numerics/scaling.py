"""
Scales of input channels: a linear layer computes (x / s) (s W) instead of x W.

Nothing changes before rounding; after it, s decides which channels pay. Whoever makes
x divides by s once and for all: the norm before the layer takes 1 / s into its weight,
or the linear before it into its output channels. Three things make a scale usable:

- It is positive, finite and within 2^-8 .. 2^8, and 1 for a channel that is never used
  or never weighted, so that no stored number overflows or vanishes.
- Channels that one number of the producer feeds share their scale (`tie_I`): with
  grouped-query attention a value head feeds several query heads' inputs.
- What the producer stores is rounded; `settle_scales` asks the stored numbers which
  scale they really apply, and the layer is then scaled by that one.

Shape suffixes: I input channels, O output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_LIMIT = 2.0**8


def usable_scales(s_I: Tensor, live_I: Tensor, tie_I: Tensor | None = None) -> Tensor:
    """
    Bound scales, tied ones equal, those of dead channels 1.

    Args:
        s_I: Wished scales; anything, even NaN, in dead channels.
        live_I: Which channels carry anything.
        tie_I: int64, channels with equal values share their scale; None ties none.

    Returns:
        float32 scales; the geometric mean of the extremes of live ones is 1.
    """
    log_I = s_I.to(torch.float32).log2()
    live_I = live_I & torch.isfinite(log_I)
    log_I = torch.where(live_I, log_I, torch.zeros_like(log_I))
    if tie_I is not None:
        weight_I = tie_sum(live_I.to(torch.float32), tie_I)
        log_I = tie_sum(log_I, tie_I) / weight_I.clamp_min(1)
        live_I = weight_I > 0
    if bool(live_I.any()):
        lived = log_I[live_I]
        log_I = torch.where(live_I, log_I - (lived.amax() + lived.amin()) / 2, log_I)
    limit = torch.tensor(SCALE_LIMIT).log2().item()
    return log_I.clamp_(-limit, limit).exp2_()


def tie_sum(value_I: Tensor, tie_I: Tensor) -> Tensor:
    """The sum over each channel's ties, back at every one of them."""
    _, index_I = torch.unique(tie_I, return_inverse=True)
    sums = torch.zeros(
        int(index_I.max()) + 1, dtype=torch.float64, device=value_I.device
    )
    sums.scatter_add_(0, index_I, value_I.to(torch.float64))
    return sums[index_I].to(value_I.dtype)


def tie_mean(value_I: Tensor, tie_I: Tensor | None) -> Tensor:
    """The mean over each channel's ties, back at every one of them."""
    if tie_I is None:
        return value_I
    return tie_sum(value_I, tie_I) / tie_sum(torch.ones_like(value_I), tie_I)


def tie_amax(value_I: Tensor, tie_I: Tensor | None) -> Tensor:
    """The largest over each channel's ties, back at every one of them."""
    if tie_I is None:
        return value_I
    _, index_I = torch.unique(tie_I, return_inverse=True)
    top = value_I.new_zeros(int(index_I.max()) + 1)
    top.scatter_reduce_(0, index_I, value_I, "amax", include_self=False)
    return top[index_I]


def scale_problem(w_IO: Tensor, h_II: Tensor, s_I: Tensor) -> tuple[Tensor, Tensor]:
    """
    The same layer seen from behind the scales.

    Args:
        w_IO: float32 weights, transposed.
        h_II: float32 mean of X' X.
        s_I: Scales.

    Returns:
        s W, and the H of x / s. Errors weighed by it are those of the layer itself:
        trace((s D)' (H / s s') (s D)) = trace(D' H D).
    """
    scaled_II = s_I[:, None] * s_I
    torch.div(h_II, scaled_II, out=scaled_II)
    return w_IO * s_I[:, None], scaled_II


def settle_scales(
    producer_I: Tensor, s_I: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """
    Fold scales into the vector that makes the inputs, a norm's weight or a bias.

    Args:
        producer_I: One factor per channel, as float32.
        s_I: Wished scales.
        dtype: Type the factors are stored in.

    Returns:
        The factors to store, in `dtype`, and the scales they really apply, float32:
        factor / stored. Where nothing is left to divide, the wish stays.
    """
    stored_I = (producer_I / s_I).to(dtype)
    wide_I = stored_I.to(torch.float32)
    real_I = producer_I / wide_I
    usable_I = torch.isfinite(real_I) & (real_I > 0)
    return stored_I, torch.where(usable_I, real_I, s_I)
