"""
From a group's weights and statistics to its smoothing scale and its codes.

The one place where methods differ: everything before (how inputs are made) and after
(how codes are stored) is the same for all of them.

Shape suffixes: I input channels, O output channels, G groups of I.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.numerics.gptq import gptq
from lmi_build.numerics.grids import Grid
from lmi_build.numerics.rtn import round_to_nearest

if TYPE_CHECKING:
    from torch import Tensor

    from lmi_build.numerics.gptq import Quantized
    from lmi_build.quantizers.options import Options
    from lmi_build.values.quant import QuantScheme


def grid_of(num_inputs: int, options: Options, scheme: QuantScheme) -> Grid:
    """The grid of a layer with so many input channels."""
    size = num_inputs if options.group_size == -1 else options.group_size
    return Grid(
        bits=options.bits,
        group_size=size,
        sym=options.sym,
        scale_dtype=scheme.scale_dtype,
    )


def round_weights(
    w_IO: Tensor, h_II: Tensor | None, options: Options, scheme: QuantScheme
) -> Quantized:
    """
    Put a group's weights on their grid.

    Args:
        w_IO: float32 weights, smoothed already; overwritten.
        h_II: X' X / T of the inputs they meet, for methods that need it; overwritten.
        options: What the recipe decided.
        scheme: What is written.

    Raises:
        NotPositiveDefinite: H is not a product X' X.
    """
    if options.method == "gptq" and h_II is not None:
        return gptq(
            w_IO,
            h_II,
            grid=grid_of(w_IO.shape[0], options, scheme),
            desc_act=options.desc_act,
            damp_percent=options.damp_percent,
        )
    return round_to_nearest(
        w_IO,
        bits=options.bits,
        group_size=options.group_size,
        sym=options.sym,
        scale_dtype=scheme.scale_dtype,
    )
