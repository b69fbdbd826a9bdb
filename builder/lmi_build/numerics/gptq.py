"""
GPTQ: rounding one input channel after another, each error repaid by those to come.

A linear layer y = x W has the calibration inputs x_TI. What counts is the error of y,
    sum over t of |x_t (W - Q)|^2  =  trace((W - Q)' H (W - Q)),   H = X' X,
so a layer needs only its H_II, and every output channel is a problem of its own with
the same H. GPTQ (Frantar et al. 2022, section 3) rounds channel j to its grid, then
moves all channels not yet rounded to where they lose least, given that rounding. With
the upper factor U of the inverse, H^-1 = U' U, that move is one row of U:
    e_j = (w_j - q_j) / U_jj,      w_k -= e_j U_jk  for all k > j.

What is done beyond the paper, each a known improvement that leaves the format alone:

- Act-order with static groups: channels are visited by falling H_jj while they can
  still be repaid by many, but scales belong to fixed groups i // group_size, so a
  reader needs no permutation.
- Scales are searched, not spanned: each group takes the clipping with the least error
  weighted by 1 / U_jj^2, the price GPTQ itself puts on an error in that channel.
- Dampening that grows: H gets `damp_percent` of its mean diagonal added, ten times
  more whenever it still has no Cholesky factor.

The loops are left-looking inside a block of channels (one matrix-vector product reads
the block's errors once) and update the rest by one matrix product per block. Of I x I
matrices one is alive: H is ordered, factored and inverted in its own memory
(triangular.py), and the error it would tell is told by the walk, as the sum of e_j^2.

Shape suffixes: I input channels, O output channels, G groups of I, T tokens,
B channels of one block, P channels in visiting order.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmi_build.numerics.grids import Grid, dequantize, search_scales
from lmi_build.numerics.triangular import factor, invert, mirror, reorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Part = tuple[Tensor, Tensor, Tensor, Tensor]
    Each = Callable[[Callable[[slice], Part], Sequence[slice]], list[Part]]

# Channels per block: large enough that the rest is updated by fat matrix products,
# small enough that a block's errors (block x O floats) stay in the L2 cache.
BLOCK_LEN = 64
# Adding and subtracting this rounds a float32 below 2^22 to the nearest whole number,
# even on a tie. `torch.round` wakes other threads from 2048 numbers on, which in a loop
# over columns costs hundreds of times the rounding itself.
_ROUNDER = 1.5 * 2**23
# Dampening starts at the recipe's share and grows tenfold, at most this often.
DAMP_GROWTH = 10.0
MAX_DAMP_TRIES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """
    A quantized linear layer.

    Args:
        code_IO: uint8 codes.
        scale_GO: float32 scales, exactly representable as float16.
        zero_GO: uint8 zero points, at least 1.
        error_O: diag(D' H D) with D = W - Q: the squared error of each output on the
            calibration tokens.
        power_O: diag(W' H W): what it is to be compared with.
        damp_percent: The dampening that was needed, as a share.
    """

    code_IO: Tensor
    scale_GO: Tensor
    zero_GO: Tensor
    error_O: Tensor
    power_O: Tensor
    damp_percent: float


class NotPositiveDefinite(ArithmeticError):
    """H has no Cholesky factor at any dampening tried; it is not a product X' X."""


def hessian_error(miss_IO: Tensor, h_II: Tensor) -> Tensor:
    """Squared output error of each output channel, [O]: diag(D' H D)."""
    return (h_II @ miss_IO).mul_(miss_IO).sum(dim=0)


def inverse_factor(
    h_II: Tensor, order_P: Tensor, damp_percent: float
) -> tuple[Tensor, float]:
    """
    The upper U with H^-1 = U' U, dampened until there is one.

    H = R R' with R upper triangular gives U = R^-1. H is never inverted explicitly.

    Args:
        h_II: float32, symmetric; overwritten.
        order_P: Visiting order of the channels.
        damp_percent: Share of H's mean diagonal to add to begin with.

    Returns:
        U in visiting order, in the memory of `h_II`, and the share that was needed.

    Raises:
        NotPositiveDefinite: No dampening tried was enough.
    """
    mean = float(h_II.diagonal().mean())
    reorder(h_II, order_P)
    diagonal_P = h_II.diagonal()
    seen_P = diagonal_P.clone()
    share = damp_percent
    for _ in range(MAX_DAMP_TRIES):
        diagonal_P.copy_(seen_P + share * mean)
        diagonal_P[diagonal_P <= 0] = 1.0
        if factor(h_II):
            break
        mirror(h_II.T)
        share = max(share, 1e-4) * DAMP_GROWTH
    else:
        raise NotPositiveDefinite(f"not positive definite at dampening {share:g}")
    invert(h_II)
    if not bool(torch.isfinite(diagonal_P).all()):
        raise NotPositiveDefinite(f"singular at dampening {share:g}")
    return h_II, share


def gptq(
    w_IO: Tensor,
    h_II: Tensor,
    *,
    grid: Grid,
    desc_act: bool,
    damp_percent: float,
    each: Each = lambda solve, parts: list(map(solve, parts)),
    num_parts: int = 1,
) -> Quantized:
    """
    Quantize one linear layer, or several that share an input, side by side along O.

    Outputs are walked each by itself, with one factor of H. So the walk, which is many
    small operations, can be dealt out to threads by outputs, none waiting for another.

    Args:
        w_IO: float32 weights, transposed.
        h_II: float32 X' X of the layer's inputs, symmetric; any positive factor.
            Overwritten.
        grid: The grid; its `group_size` divides I.
        desc_act: Visit channels by falling H_jj instead of in order.
        damp_percent: Share of H's mean diagonal to add.
        each: Solves parts of the outputs one after another, or several at a time.
        num_parts: How many parts there are.

    Returns:
        Codes, scales, zero points and errors.

    Raises:
        NotPositiveDefinite: H is not a product X' X.
    """
    diagonal_I = h_II.diagonal().clone()
    order_P = torch.arange(len(diagonal_I), device=w_IO.device)
    if desc_act:
        order_P = torch.argsort(diagonal_I, descending=True, stable=True)
    back_I = torch.argsort(order_P)
    power_O = hessian_error(w_IO, h_II)
    u_PP, share = inverse_factor(h_II, order_P, damp_percent)
    importance_I = u_PP.diagonal().square().reciprocal()[back_I]
    group_P = order_P // grid.group_size
    # The walk's loss is in the norm of the dampened H.
    extra = share * float(diagonal_I.mean())
    extra_I = torch.where(diagonal_I + extra > 0, extra, 1.0 - diagonal_I)

    def solve(columns: slice) -> Part:
        part_IO = w_IO[:, columns]
        scale_GO, zero_GO = search_scales(part_IO, importance_I, grid=grid)
        part_PO = part_IO[order_P]
        code_PO, loss_O = walk(part_PO, u_PP, scale_GO, zero_GO, group_P, grid=grid)
        del part_PO
        code_IO = code_PO[back_I]
        del code_PO
        miss_IO = dequantize(code_IO, scale_GO, zero_GO).sub_(part_IO)
        loss_O -= extra_I @ miss_IO.square_()
        return code_IO, scale_GO, zero_GO, loss_O

    size = max(1, -(-w_IO.shape[1] // num_parts))
    parts = [slice(at, at + size) for at in range(0, w_IO.shape[1], size)]
    solved = each(solve, parts)
    code_IO, scale_GO, zero_GO, loss_O = (
        one[0] if len(parts) == 1 else torch.cat(one, -1)
        for one in zip(*solved, strict=True)
    )
    return Quantized(
        code_IO=code_IO,
        scale_GO=scale_GO,
        zero_GO=zero_GO.to(torch.uint8),
        error_O=loss_O.clamp_min_(0),
        power_O=power_O,
        damp_percent=share,
    )


def walk(
    w_PO: Tensor,
    u_PP: Tensor,
    scale_GO: Tensor,
    zero_GO: Tensor,
    group_P: Tensor,
    *,
    grid: Grid,
) -> tuple[Tensor, Tensor]:
    """
    GPTQ's greedy walk.

    Args:
        w_PO: float32 weights in visiting order; overwritten.
        u_PP: Upper factor of the inverse of H, in visiting order.
        scale_GO: Scales.
        zero_GO: Zero points.
        group_P: Group of each channel.
        grid: The grid.

    Returns:
        Codes [P, O], uint8, and each output's loss [O], the sum of e_j^2, which is
        diag(D' H D) of what was factored.
    """
    num_inputs, num_outputs = w_PO.shape
    groups = group_P.tolist()
    pivots = u_PP.diagonal().reciprocal().tolist()
    scales, zeros = scale_GO.unbind(), zero_GO.unbind()
    inverses = scale_GO.reciprocal().unbind()
    offsets = (zero_GO + _ROUNDER).unbind()
    code_PO = torch.empty_like(w_PO, dtype=torch.uint8)
    code_BO, error_BO = w_PO.new_empty(2, BLOCK_LEN, num_outputs)
    loss_O = w_PO.new_zeros(num_outputs)
    errors, codes, weights = error_BO.unbind(), code_BO.unbind(), w_PO.unbind()
    for start in range(0, num_inputs, BLOCK_LEN):
        stop = min(start + BLOCK_LEN, num_inputs)
        column_BB = u_PP[start:stop, start:stop].T.contiguous()
        for row in range(stop - start):
            j = start + row
            w_O, code_O, error_O, g = weights[j], codes[row], errors[row], groups[j]
            if row:
                w_O.addmv_(error_BO[:row].T, column_BB[row, :row], alpha=-1)
            torch.addcmul(offsets[g], w_O, inverses[g], out=code_O)
            code_O.sub_(_ROUNDER).clamp_(0, grid.max_code)
            torch.sub(code_O, zeros[g], out=error_O)
            torch.addcmul(w_O, error_O, scales[g], value=-1, out=error_O)
            error_O.mul_(pivots[j])
        code_PO[start:stop] = code_BO[: stop - start]
        done_BO = error_BO[: stop - start]
        loss_O += done_BO.square().sum(dim=0)
        if stop < num_inputs:
            w_PO[stop:].addmm_(u_PP[start:stop, stop:].T, done_BO, alpha=-1)
    return code_PO, loss_O
