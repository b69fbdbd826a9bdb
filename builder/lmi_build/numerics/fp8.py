"""
Weights, activations in eight-bit floating point (E4M3).

E4M3 has a sign, four bits of exponent (bias 7) and three of mantissa; it has no
infinity, the largest number is 448, steps grow with the number, and what lies above
must be clamped first: the cast itself makes NaN of it. A tensor is divided by one
scale that brings its largest magnitude to 448, so that no code is wasted at the top.
Unlike integers, a larger scale costs nothing but range at the bottom (2**-9), so
searching it gains little: what a scale decides is only where the binades begin.

Scales of weights are one per tensor or one per output channel; those of activations
one per token (found while serving) or one per tensor (found by calibration).

Shape suffixes: I input channels, O output channels, G one group of all I, T tokens.

Sources: Micikevicius et al. 2022, "FP8 formats for deep learning", arXiv:2209.05433,
table 1; compressed-tensors 0.19.0, quantization/utils/helpers.py `calculate_qparams`
(absmax / 448) and quantization/quant_args.py `round_to_quantized_type_args` (clamp,
then cast).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmi_build.numerics.gptq import Quantized, hessian_error

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
# Below this a scale would be subnormal in float32's reciprocal; zeros get it.
MIN_SCALE = 2.0**-40
# The scale is tried at these multiples of absmax / 448 when it is searched; above 1
# nothing clips and the binades move, below 1 the largest weights do.
SEARCH_FACTORS = tuple(2.0 ** (step / 8) for step in range(-2, 8))


def cast_fp8(x: Tensor) -> Tensor:
    """
    The nearest E4M3 number, ties to even, saturating at 448.

    Args:
        x: Any float dtype; NaN stays NaN.

    Returns:
        float8_e4m3fn of the same shape.
    """
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8)


def fp8_scale(absmax: Tensor, *, scale_dtype: str = "float32") -> Tensor:
    """
    The scale that brings a largest magnitude to 448.

    Args:
        absmax: Largest magnitudes, any shape, finite.
        scale_dtype: Type the scale is stored in.

    Returns:
        float32 scales above zero that are exact in `scale_dtype`.
    """
    return _stored(absmax.to(torch.float32) / FP8_MAX, scale_dtype)


def _stored(scale: Tensor, scale_dtype: str) -> Tensor:
    dtype = getattr(torch, scale_dtype)
    low = max(MIN_SCALE, float(torch.finfo(dtype).tiny))
    high = float(torch.finfo(dtype).max)
    return scale.clamp(low, high).to(dtype).to(torch.float32)


def quantize_fp8(
    w_IO: Tensor,
    *,
    per_channel: bool,
    h_II: Tensor | None = None,
    search: bool = False,
    scale_dtype: str = "float32",
) -> Quantized:
    """
    Round one linear layer to E4M3.

    Args:
        w_IO: float32 weights, transposed.
        per_channel: One scale per output channel instead of one per tensor.
        h_II: float32 mean of X' X to measure the error by; identity where None.
        search: Take the best of `SEARCH_FACTORS` instead of absmax / 448.
        scale_dtype: Type the scale is stored in.

    Returns:
        float8_e4m3fn codes [I, O], scales [1, O] (all equal per tensor), zero points 0.
    """
    absmax_O = w_IO.abs().amax(dim=0)
    if not per_channel:
        absmax_O = absmax_O.amax().expand_as(absmax_O)
    scale_O = fp8_scale(absmax_O, scale_dtype=scale_dtype)
    if search:
        importance_I = None if h_II is None else h_II.diagonal()
        scale_O = _search(
            w_IO,
            scale_O,
            importance_I,
            per_channel=per_channel,
            scale_dtype=scale_dtype,
        )
    code_IO = cast_fp8(w_IO / scale_O)
    miss_IO = w_IO - code_IO.to(torch.float32) * scale_O
    return Quantized(
        code_IO=code_IO,
        scale_GO=scale_O[None].contiguous(),
        zero_GO=torch.zeros_like(scale_O[None], dtype=torch.uint8),
        error_O=_error(miss_IO, h_II),
        power_O=_error(w_IO, h_II),
        damp_percent=0.0,
    )


def _search(
    w_IO: Tensor,
    start_O: Tensor,
    importance_I: Tensor | None,
    *,
    per_channel: bool,
    scale_dtype: str,
) -> Tensor:
    """The best multiple of the starting scale, by weighted rounding error."""
    best_O = torch.full_like(start_O, torch.inf)
    scale_O = start_O.clone()
    for factor in SEARCH_FACTORS:
        try_O = _stored(start_O * factor, scale_dtype)
        miss_IO = cast_fp8(w_IO / try_O).to(torch.float32).mul_(try_O).sub_(w_IO)
        miss_IO.square_()
        if importance_I is not None:
            miss_IO.mul_(importance_I[:, None])
        error_O = miss_IO.sum(dim=0)
        if not per_channel:
            error_O = error_O.sum().expand_as(error_O)
        better_O = error_O < best_O
        best_O = torch.where(better_O, error_O, best_O)
        scale_O = torch.where(better_O, try_O, scale_O)
    return scale_O


def _error(miss_IO: Tensor, h_II: Tensor | None) -> Tensor:
    if h_II is None:
        return miss_IO.square().sum(dim=0)
    return hessian_error(miss_IO, h_II)


def dequantize_fp8(code_IO: Tensor, scale_GO: Tensor) -> Tensor:
    """What codes mean, float32 [I, O]."""
    return code_IO.to(torch.float32) * scale_GO


def fake_quantize_fp8_per_token(x_TI: Tensor) -> Tensor:
    """Inputs as a kernel with one dynamic scale per token sees them, float32."""
    wide_TI = x_TI.to(torch.float32)
    scale_T1 = fp8_scale(wide_TI.abs().amax(dim=-1, keepdim=True))
    return cast_fp8(wide_TI / scale_T1).to(torch.float32) * scale_T1


def fake_quantize_fp8_static(x_TI: Tensor, scale: Tensor | float) -> Tensor:
    """Inputs as a kernel with one stored scale sees them, float32."""
    return cast_fp8(x_TI.to(torch.float32) / scale).to(torch.float32) * scale
