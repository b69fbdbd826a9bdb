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
- Descent, on request (measured, it gains nothing, so the default is none): sweeps of
  exact coordinate descent on the same error. A sweep first refits each group's scale
  to its codes by least squares, then rounds each channel to its best value given all
  others. No step can raise the error, so GPTQ's result is the worst case.
- Dampening that grows: H gets `damp_percent` of its mean diagonal added, ten times
  more whenever it still has no Cholesky factor.

The loops are left-looking inside a block of channels (one matrix-vector product reads
the block's errors once) and update the rest by one matrix product per block.

Shape suffixes: I input channels, O output channels, G groups of I, T tokens,
B channels of one block, P channels in visiting order.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmi_build.numerics.grids import Grid, dequantize, round_scale, search_scales

# Channels per block: large enough that the rest is updated by fat matrix products,
# small enough that a block's errors (block x O floats) stay in the L2 cache.
BLOCK_LEN = 64
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


def dampen(h_II: Tensor, damp_percent: float) -> Tensor:
    """
    H with a share of its mean diagonal added; channels never seen get one.

    Args:
        h_II: float32, symmetric.
        damp_percent: Share of the mean diagonal.

    Returns:
        A new matrix.
    """
    damped_II = h_II.clone()
    diagonal_I = damped_II.diagonal()
    extra = damp_percent * float(diagonal_I.mean())
    diagonal_I.add_(extra)
    diagonal_I[diagonal_I <= 0] = 1.0
    return damped_II


def inverse_factor(h_II: Tensor) -> Tensor | None:
    """
    The upper U with H^-1 = U' U, or None where H is not positive definite.

    With J the reversal, J H J = L L' gives H = (J L J)(J L J)', and J L J is upper
    triangular; its inverse is U. One factorization and one triangular inverse, and H
    is never inverted explicitly.
    """
    factor_II, failed = torch.linalg.cholesky_ex(h_II.flip(0, 1))
    if int(failed):
        return None
    eye_II = torch.eye(h_II.shape[0], dtype=h_II.dtype)
    inverse_II = torch.linalg.solve_triangular(factor_II, eye_II, upper=False)
    u_II = inverse_II.flip(0, 1)
    return u_II if bool(torch.isfinite(u_II).all()) else None


def damped_factor(
    h_II: Tensor, order_P: Tensor, damp_percent: float
) -> tuple[Tensor, Tensor, float]:
    """
    Dampen until H can be factored.

    Args:
        h_II: float32, symmetric.
        order_P: Visiting order of the channels.
        damp_percent: Share of the mean diagonal to begin with.

    Returns:
        The damped H, the U of its inverse in visiting order, and the share needed.

    Raises:
        NotPositiveDefinite: No dampening tried was enough.
    """
    share = damp_percent
    for _ in range(MAX_DAMP_TRIES):
        damped_II = dampen(h_II, share)
        u_PP = inverse_factor(damped_II[order_P][:, order_P])
        if u_PP is not None:
            return damped_II, u_PP, share
        share = max(share, 1e-4) * DAMP_GROWTH
    raise NotPositiveDefinite(f"not positive definite at dampening {share:g}")


def gptq(
    w_IO: Tensor,
    h_II: Tensor,
    *,
    grid: Grid,
    desc_act: bool,
    damp_percent: float,
    num_sweeps: int = 0,
) -> Quantized:
    """
    Quantize one linear layer, or several that share an input, side by side along O.

    Args:
        w_IO: float32 weights, transposed.
        h_II: float32 X' X of the layer's inputs, symmetric; any positive factor.
        grid: The grid; its `group_size` divides I.
        desc_act: Visit channels by falling H_jj instead of in order.
        damp_percent: Share of H's mean diagonal to add.
        num_sweeps: Sweeps of coordinate descent after the walk.

    Returns:
        Codes, scales, zero points and errors.

    Raises:
        NotPositiveDefinite: H is not a product X' X.
    """
    diagonal_I = h_II.diagonal()
    order_P = torch.arange(len(diagonal_I))
    if desc_act:
        order_P = torch.argsort(diagonal_I, descending=True, stable=True)
    back_I = torch.argsort(order_P)
    damped_II, u_PP, share = damped_factor(h_II, order_P, damp_percent)
    importance_I = u_PP.diagonal().square().reciprocal()[back_I]
    scale_GO, zero_GO = search_scales(w_IO, importance_I, grid=grid)
    group_P = order_P // grid.group_size
    code_IO = walk(w_IO[order_P], u_PP, scale_GO, zero_GO, group_P, grid=grid)[back_I]
    del u_PP
    for _ in range(num_sweeps):
        refit_scales(w_IO, damped_II, code_IO, scale_GO, zero_GO, grid=grid)
        descend(w_IO, damped_II, code_IO, scale_GO, zero_GO, grid=grid)
    miss_IO = w_IO - dequantize(code_IO, scale_GO, zero_GO)
    return Quantized(
        code_IO=code_IO.to(torch.uint8),
        scale_GO=scale_GO,
        zero_GO=zero_GO.to(torch.uint8),
        error_O=hessian_error(miss_IO, h_II),
        power_O=hessian_error(w_IO, h_II),
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
) -> Tensor:
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
        Codes [P, O], float32.
    """
    num_inputs, num_outputs = w_PO.shape
    groups = group_P.tolist()
    pivots = u_PP.diagonal().tolist()
    scales, zeros = scale_GO.unbind(), zero_GO.unbind()
    code_PO = torch.empty_like(w_PO)
    error_BO = torch.empty(BLOCK_LEN, num_outputs)
    for start in range(0, num_inputs, BLOCK_LEN):
        stop = min(start + BLOCK_LEN, num_inputs)
        column_BB = u_PP[start:stop, start:stop].T.contiguous()
        for row in range(stop - start):
            j = start + row
            w_O, code_O, error_O = w_PO[j], code_PO[j], error_BO[row]
            if row:
                w_O.addmv_(error_BO[:row].T, column_BB[row, :row], alpha=-1)
            scale_O, zero_O = scales[groups[j]], zeros[groups[j]]
            torch.div(w_O, scale_O, out=code_O)
            code_O.round_().add_(zero_O).clamp_(0, grid.max_code)
            torch.sub(code_O, zero_O, out=error_O)
            error_O.mul_(scale_O).sub_(w_O).mul_(-1 / pivots[j])
        if stop < num_inputs:
            w_PO[stop:].addmm_(
                u_PP[start:stop, stop:].T, error_BO[: stop - start], alpha=-1
            )
    return code_PO


def refit_scales(
    w_IO: Tensor,
    h_II: Tensor,
    code_IO: Tensor,
    scale_GO: Tensor,
    zero_GO: Tensor,
    *,
    grid: Grid,
) -> None:
    """
    Move each scale to the least-squares fit of its codes, group after group.

    With the other groups fixed, trace(D' H D) is a parabola in each scale: its minimum
    is s + c' (H D) / (c' H c), where c holds the group's centred codes. A scale is
    changed only if its rounded value lowers the parabola.

    Args:
        w_IO: float32 weights.
        h_II: float32 H, the error to lower.
        code_IO: float32 codes.
        scale_GO: float32 scales; changed in place.
        zero_GO: float32 zero points.
        grid: The grid.
    """
    pull_IO = h_II @ (w_IO - dequantize(code_IO, scale_GO, zero_GO))
    group = grid.group_size
    for index in range(scale_GO.shape[0]):
        rows = slice(index * group, (index + 1) * group)
        centred_gO = code_IO[rows] - zero_GO[index]
        slope_O = (centred_gO * pull_IO[rows]).sum(dim=0)
        bend_O = (centred_gO * (h_II[rows, rows] @ centred_gO)).sum(dim=0)
        best_O = scale_GO[index] + slope_O / bend_O.clamp_min(1e-30)
        step_O = round_scale(best_O, grid.scale_dtype) - scale_GO[index]
        gain_O = step_O * (2 * slope_O - step_O * bend_O)
        step_O = torch.where(gain_O > 0, step_O, torch.zeros_like(step_O))
        scale_GO[index] += step_O
        pull_IO.addmm_(h_II[:, rows], centred_gO * step_O, alpha=-1)


def descend(
    w_IO: Tensor,
    h_II: Tensor,
    code_IO: Tensor,
    scale_GO: Tensor,
    zero_GO: Tensor,
    *,
    grid: Grid,
) -> None:
    """
    One sweep of exact coordinate descent over the codes.

    With all other channels fixed, channel j loses least at q_j + (H D)_j / H_jj; it
    takes the code nearest to that.

    Args:
        w_IO: float32 weights.
        h_II: float32 H, the error to lower.
        code_IO: float32 codes; changed in place.
        scale_GO: float32 scales.
        zero_GO: float32 zero points.
        grid: The grid.
    """
    num_inputs, num_outputs = w_IO.shape
    pull_IO = h_II @ (w_IO - dequantize(code_IO, scale_GO, zero_GO))
    diagonal = h_II.diagonal().tolist()
    move_BO = torch.empty(BLOCK_LEN, num_outputs)
    for start in range(0, num_inputs, BLOCK_LEN):
        stop = min(start + BLOCK_LEN, num_inputs)
        h_BB = h_II[start:stop, start:stop]
        for row in range(stop - start):
            j = start + row
            pull_O, code_O, move_O = pull_IO[j], code_IO[j], move_BO[row]
            if row:
                pull_O.addmv_(move_BO[:row].T, h_BB[row, :row], alpha=-1)
            scale_O = scale_GO[j // grid.group_size]
            wish_O = pull_O.div_(diagonal[j]).div_(scale_O).add_(code_O)
            wish_O.round_().clamp_(0, grid.max_code)
            torch.sub(wish_O, code_O, out=move_O)
            move_O.mul_(scale_O)
            code_O.copy_(wish_O)
        if stop < num_inputs:
            pull_IO[stop:].addmm_(
                h_II[stop:, start:stop], move_BO[: stop - start], alpha=-1
            )
