"""
The numbers a quantized weight can be: uniform grids with one scale per group.

A weight is stored as a code q in [0, 2**bits - 1] and means (q - zero) * scale. All
rows of one output channel that lie in the same group of input channels share `scale`
and `zero`. A symmetric grid fixes zero = 2**(bits - 1), so that the codes reach one
step further below zero than above; an asymmetric grid may move it.

Everything is laid out transposed, [I, O], because that is how GPTQ walks (one input
channel after another) and how the result is packed.

Shape suffixes: I input channels, O output channels, G groups of I.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Scales are stored as float16; below this they would lose most of their digits to
# subnormal numbers, and zero would divide by zero in every reader.
MIN_SCALE = 2.0**-20
MAX_SCALE = 65504.0

# Shares of the full range tried as clipping. Rounding error falls with the step while
# clipping error grows; for 4 bits the optimum lies between 0.6 and 1.0 of the range.
SHRINKS = tuple(1.0 - 0.025 * step for step in range(20))
# With 8 bits, clipping soon costs more than a finer step gains, and more clipping only
# costs more: the search ends after a share that helps no output. (One share more gave
# none of 51,840 outputs of SmolLM2 another scale.)
_PATIENCE, _PATIENT_BITS = 1, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """
    One kind of integer grid.

    Args:
        bits: Bits of one code.
        group_size: Input channels per scale, never -1.
        sym: Whether the zero point is fixed in the middle.
        scale_dtype: Type that scales are stored in.
    """

    bits: int
    group_size: int
    sym: bool
    scale_dtype: str = "float16"

    @property
    def max_code(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 1 << (self.bits - 1)


def round_scale(scale: Tensor, dtype: str = "float16") -> Tensor:
    """
    The nearest usable scale that a file can hold.

    Args:
        scale: float32 scales.
        dtype: Type they are stored in.

    Returns:
        float32 scales that are exact in `dtype`.
    """
    stored = scale.clamp(MIN_SCALE, MAX_SCALE).to(getattr(torch, dtype))
    return stored.to(torch.float32)


def quantize(w: Tensor, scale: Tensor, zero: Tensor, *, max_code: int) -> Tensor:
    """Codes nearest to `w`, as float32; all arguments broadcast together."""
    return (w / scale).round_().add_(zero).clamp_(0, max_code)


def dequantize(code_IO: Tensor, scale_GO: Tensor, zero_GO: Tensor) -> Tensor:
    """
    What codes mean.

    Args:
        code_IO: Codes of any dtype.
        scale_GO: float32 scales.
        zero_GO: Zero points of any dtype.

    Returns:
        float32 weights [I, O].
    """
    num_groups, num_outputs = scale_GO.shape
    w_IO = code_IO.to(torch.float32, copy=True)
    w_GgO = w_IO.view(num_groups, -1, num_outputs)
    w_GgO.sub_(zero_GO.to(torch.float32)[:, None]).mul_(scale_GO[:, None])
    return w_IO


def search_scales(
    w_IO: Tensor,
    importance_I: Tensor | None,
    *,
    grid: Grid,
    shrinks: tuple[float, ...] = SHRINKS,
) -> tuple[Tensor, Tensor]:
    """
    For every group, the scale and zero point with the least weighted rounding error.

    Args:
        w_IO: float32 weights.
        importance_I: Weight of a squared error in each input channel, above zero; None
            weighs all alike.
        grid: The grid; its `group_size` divides I.
        shrinks: Shares of the full range to try, the first is taken on a tie.

    Returns:
        Scales [G, O], float32 but exactly representable as float16, and zero points
        [G, O], float32 holding integers of at least one.
    """
    group, num_outputs = grid.group_size, w_IO.shape[1]
    num_groups = w_IO.shape[0] // group
    scale_GO = w_IO.new_empty(num_groups, num_outputs)
    zero_GO = w_IO.new_empty(num_groups, num_outputs)
    for index in range(num_groups):
        rows = slice(index * group, (index + 1) * group)
        importance_g = None if importance_I is None else importance_I[rows]
        scale_GO[index], zero_GO[index] = search_group(
            w_IO[rows], importance_g, grid=grid, shrinks=shrinks
        )
    return scale_GO, zero_GO


def search_group(
    w_gO: Tensor,
    importance_g: Tensor | None,
    *,
    grid: Grid,
    shrinks: tuple[float, ...] = SHRINKS,
) -> tuple[Tensor, Tensor]:
    """
    `search_scales` for one group.

    Args:
        w_gO: float32 weights of the group.
        importance_g: Weight of a squared error in each input channel, or None.
        grid: The grid.
        shrinks: Shares of the full range to try.

    Returns:
        Scale [O] and zero point [O]. The scale is NaN where squared errors of all tries
        are beyond float32: no format takes it.
    """
    low_O = w_gO.amin(dim=0).clamp_max_(0)
    high_O = w_gO.amax(dim=0).clamp_min_(0)
    best_O = torch.full_like(low_O, torch.inf)
    # Where no error is a number, since its square is too large for one, no scale is.
    scale_O = torch.full_like(low_O, torch.nan)
    zero_O = torch.full_like(low_O, grid.middle)
    idle = 0
    for shrink in shrinks:
        try_scale_O, try_zero_O = fit_range(low_O * shrink, high_O * shrink, grid)
        miss_gO = _missed(w_gO, try_scale_O, try_zero_O, grid)
        square_gO = miss_gO.square_()
        if importance_g is not None:
            square_gO *= importance_g[:, None]
        error_O = square_gO.sum(dim=0)
        better_O = error_O < best_O
        if grid.bits == _PATIENT_BITS:
            idle = 0 if bool(better_O.any()) else idle + 1
            if idle == _PATIENCE:
                break
        best_O = torch.where(better_O, error_O, best_O)
        scale_O = torch.where(better_O, try_scale_O, scale_O)
        zero_O = torch.where(better_O, try_zero_O, zero_O)
    return scale_O, zero_O


def _missed(w_gO: Tensor, scale_O: Tensor, zero_O: Tensor, grid: Grid) -> Tensor:
    """What rounding leaves, up to its sign, in as few passes as can be."""
    if grid.sym:
        # The zero point is a whole number: adding it first changes no code.
        code_gO = (w_gO / scale_O).round_()
        code_gO.clamp_(-grid.middle, grid.max_code - grid.middle)
    else:
        code_gO = quantize(w_gO, scale_O, zero_O, max_code=grid.max_code)
        code_gO.sub_(zero_O)
    return torch.addcmul(w_gO, code_gO, scale_O, value=-1, out=code_gO)


def fit_range(low_O: Tensor, high_O: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The scale and zero point whose codes just span a range."""
    if grid.sym:
        reach_O = torch.maximum(-low_O, high_O)
        scale_O = round_scale(2 * reach_O / grid.max_code, grid.scale_dtype)
        return scale_O, torch.full_like(scale_O, grid.middle)
    scale_O = round_scale((high_O - low_O) / grid.max_code, grid.scale_dtype)
    return scale_O, torch.round(-low_O / scale_O).clamp_(1, grid.max_code)
