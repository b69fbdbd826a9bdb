"""
Rounding to nearest: the baseline, and what int8 weights need.

With 256 codes the rounding error of a whole row is about a thousandth of its largest
weight, far below what a calibrated method could still gain; so every weight is simply
rounded to its nearest code. The scale is searched near the full range, because clipping
the one largest weight of a row often pays for a finer step for all others.

Shape suffixes: I input channels, O output channels, G groups of I.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.numerics.gptq import Quantized
from lmi_build.numerics.grids import Grid, dequantize, quantize, search_scales

if TYPE_CHECKING:
    from torch import Tensor


def round_to_nearest(
    w_IO: Tensor,
    *,
    bits: int,
    group_size: int,
    sym: bool,
    scale_dtype: str = "float16",
) -> Quantized:
    """
    Quantize one linear layer without data.

    Args:
        w_IO: float32 weights, transposed.
        bits: Bits of one code.
        group_size: Input channels per scale; -1 is the whole row.
        sym: Whether the zero point is fixed in the middle.
        scale_dtype: Type that scales are stored in.

    Returns:
        Codes, scales and zero points; errors are those of the weights, H = 1.
    """
    num_inputs = w_IO.shape[0]
    size = num_inputs if group_size == -1 else group_size
    grid = Grid(bits=bits, group_size=size, sym=sym, scale_dtype=scale_dtype)
    scale_GO, zero_GO = search_scales(w_IO, None, grid=grid)
    num_groups = num_inputs // size
    code_IO = quantize(
        w_IO.view(num_groups, size, -1),
        scale_GO[:, None],
        zero_GO[:, None],
        max_code=grid.max_code,
    ).view_as(w_IO)
    code_IO = code_IO.to(torch.uint8)
    miss_IO = dequantize(code_IO, scale_GO, zero_GO).sub_(w_IO)
    error_O = miss_IO.square_().sum(dim=0)
    del miss_IO
    return Quantized(
        code_IO=code_IO,
        scale_GO=scale_GO,
        zero_GO=zero_GO.to(torch.uint8),
        error_O=error_O,
        power_O=w_IO.square().sum(dim=0),
        damp_percent=0.0,
    )
