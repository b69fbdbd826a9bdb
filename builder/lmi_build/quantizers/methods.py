"""
From a group's weights and statistics to its smoothing scale and its codes.

The one place where methods differ: everything before (how inputs are made) and after
(how codes are stored) is the same for all of them.

Shape suffixes: I input channels, O output channels, G groups of I.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lmi_build.numerics.activation_steps import fake_quantize_per_token, static_scale
from lmi_build.numerics.awq import awq, search_awq_scales, search_gptq_scales
from lmi_build.numerics.fp8 import (
    fake_quantize_fp8_per_token,
    fp8_scale,
    quantize_fp8,
)
from lmi_build.numerics.gptq import Quantized, gptq
from lmi_build.numerics.grids import Grid, dequantize
from lmi_build.numerics.rtn import round_to_nearest
from lmi_build.numerics.smooth import search_smoothing, smoothing_scales
from lmi_build.quantizers.coded import coded_linear, is_coded, multiply
from lmi_build.quantizers.lanes import Lanes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmi_build.numerics.observers import ChannelStats
    from lmi_build.quantizers.options import Options
    from lmi_build.values.quant import QuantScheme

# Sampled tokens that tell the error of a layer's outputs.
MEASURED_ROWS = 128


def grid_of(num_inputs: int, options: Options, scheme: QuantScheme) -> Grid:
    """The grid of a layer with so many input channels."""
    size = num_inputs if options.group_size == -1 else options.group_size
    return Grid(
        bits=options.bits,
        group_size=size,
        sym=options.sym,
        scale_dtype=scheme.scale_dtype,
    )


def search_scale(
    w_IO: Tensor,
    h_II: Tensor | None,
    stats: ChannelStats,
    options: Options,
    scheme: QuantScheme,
    *,
    tie_I: Tensor | None,
    lanes: Lanes,
) -> Tensor:
    """
    The smoothing scale that a method wishes for, [I].

    Args:
        w_IO: float32 weights of everything that reads the inputs, side by side.
        h_II: X' X / T of the inputs, for AWQ.
        stats: Sizes of their channels, and some of them.
        options: What the recipe decided.
        scheme: What is written.
        tie_I: Channels with equal numbers share their scale.
        lanes: What scales to be judged are dealt out to.
    """
    if h_II is not None and options.then_gptq:
        return search_gptq_scales(
            w_IO,
            h_II,
            grid=grid_of(w_IO.shape[0], options, scheme),
            desc_act=options.desc_act,
            damp_percent=options.damp_percent,
            tie_I=tie_I,
        )
    if h_II is not None:
        return search_awq_scales(
            w_IO,
            h_II,
            stats.mean_abs_I,
            grid=grid_of(w_IO.shape[0], options, scheme),
            tie_I=tie_I,
        )
    if options.smoothing_strength is not None:
        return smoothing_scales(
            stats.absmax_I, w_IO, alpha=options.smoothing_strength, tie_I=tie_I
        )
    return search_smoothing(
        w_IO,
        stats.sample_RI,
        stats.absmax_I,
        static=options.activations == "static",
        tie_I=tie_I,
        each=lanes.map,
    ).s_I


def round_weights(
    w_IO: Tensor,
    h_II: Tensor | None,
    options: Options,
    scheme: QuantScheme,
    *,
    lanes: Lanes | None = None,
) -> Quantized:
    """
    Put a group's weights on their grid.

    Args:
        w_IO: float32 weights, smoothed already.
        h_II: X' X / T of the inputs they meet, for methods that need it; overwritten.
        options: What the recipe decided.
        scheme: What is written.
        lanes: What parts of the outputs are dealt out to, where each output is rounded
            by itself.

    Raises:
        NotPositiveDefinite: H is not a product X' X.
    """
    if options.method == "fp8":
        return quantize_fp8(
            w_IO,
            per_channel=options.granularity == "channel",
            search=True,
            scale_dtype=scheme.scale_dtype,
        )
    grid = grid_of(w_IO.shape[0], options, scheme)
    if h_II is None:

        def nearest(columns: slice) -> Quantized:
            return round_to_nearest(
                w_IO[:, columns],
                bits=options.bits,
                group_size=options.group_size,
                sym=options.sym,
                scale_dtype=scheme.scale_dtype,
            )

        middle = w_IO.shape[1] // 2
        if lanes is None or not middle or options.group_size != -1:
            return nearest(slice(None))
        halves = lanes.map(nearest, (slice(middle), slice(middle, None)))
        return side_by_side(halves)
    if options.method == "awq" and not options.then_gptq:
        return awq(w_IO, h_II, None, grid=grid, clip=options.clip)
    lanes = lanes or Lanes()
    return gptq(
        w_IO,
        h_II,
        grid=grid,
        desc_act=options.desc_act,
        damp_percent=options.damp_percent,
        each=lanes.map,
        num_parts=lanes.count,
    )


def side_by_side(parts: Sequence[Quantized]) -> Quantized:
    """Results of neighbouring outputs as one."""
    names = ("code_IO", "scale_GO", "zero_GO", "error_O", "power_O")
    return Quantized(
        **{name: torch.cat([getattr(x, name) for x in parts], -1) for name in names},
        damp_percent=parts[0].damp_percent,
    )


def measured(
    quantized: Quantized,
    w_IO: Tensor,
    stats: ChannelStats,
    scale_I: Tensor | None,
    scheme: QuantScheme,
    *,
    lanes: Lanes,
) -> Quantized:
    """
    A result with the error of its outputs on the sampled tokens, in place of weights'.

    8-bit activations are rounded as a kernel would, so that their share is counted.

    Args:
        quantized: Codes of smoothed weights.
        w_IO: float32 weights, smoothed.
        stats: Of the inputs before smoothing; it holds the sample.
        scale_I: Their smoothing, or None.
        scheme: What is written.
        lanes: What the two products are dealt out to.
    """
    stride = max(1, -(-stats.sample_RI.shape[0] // MEASURED_ROWS))
    x_RI = stats.sample_RI[::stride].float()
    smooth_RI = x_RI if scale_I is None else x_RI / scale_I

    def rounded() -> Tensor:
        if is_coded(scheme):
            coded = coded_linear(quantized, scale_I, torch.float32)
            return multiply(coded, x_RI, (slice(None),))[0]
        value_IO = dequantize(quantized.code_IO, quantized.scale_GO, quantized.zero_GO)
        if scheme.activation_scheme != "dynamic":
            return smooth_RI @ value_IO
        is_float = scheme.activation_dtype == "float"
        rounds = fake_quantize_fp8_per_token if is_float else fake_quantize_per_token
        return rounds(smooth_RI) @ value_IO

    products = (lambda: smooth_RI @ w_IO, rounded)
    y_RO, miss_RO = lanes.map(lambda product: product(), products)
    miss_RO.sub_(y_RO)
    return replace(
        quantized,
        error_O=miss_RO.square_().sum(dim=0),
        power_O=y_RO.square_().sum(dim=0),
    )


def static_input_scale(
    stats: ChannelStats,
    quantized: Quantized,
    scale_I: Tensor | None,
    scheme: QuantScheme,
) -> Tensor:
    """
    The one scale of a layer's inputs, float32 [1].

    Args:
        stats: Of the inputs before smoothing.
        quantized: Codes of smoothed weights: what an error in a channel costs.
        scale_I: The inputs' smoothing, or None.
        scheme: What is written; its activations are static.
    """
    absmax_I, sample_RI = stats.absmax_I, stats.sample_RI.float()
    if scale_I is not None:
        absmax_I, sample_RI = absmax_I / scale_I, sample_RI / scale_I
    if scheme.activation_dtype == "float":
        return fp8_scale(absmax_I.amax()).reshape(1)
    value_IO = dequantize(quantized.code_IO, quantized.scale_GO, quantized.zero_GO)
    price_I = value_IO.square_().sum(dim=1)
    step = static_scale(sample_RI, float(absmax_I.amax()), weight_I=price_I)
    return torch.tensor([step], dtype=torch.float32)
