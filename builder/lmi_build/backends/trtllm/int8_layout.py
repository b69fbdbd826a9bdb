"""
W8A8: int8 weights with a scale per output, int8 activations.

Two families, by the name of `quant_algo`. W = scale of a weight's step, X = scale of an
input's step (static activations only), both float32; K inputs, N outputs, D the dtype
of the checkpoint.

The plugins' (`*_PLUGIN`), whose names say first what shares W, then what shares X:

    weight             int8 [N, K]
    per_channel_scale  f32 [1, N]; [1, 1] for PER_TENSOR, except `qkv`, which always
                       has one per output
    act_scale          f32 [1, 1], not for PER_TOKEN
    smoother           f32 [1, K], on `dense` and `proj` only: divides their inputs
  and, outside the linear, what turns its inputs into int8, only their D or f32 [1]:
    scale_to_int                 D [1], on the norm before `qkv` and before `fc`: 1 / X,
                                 or 1 where scales are per token
    quantization_scaling_factor  f32 [1], on `attention` for `dense` and on `mlp` for
                                 `proj`: 1 / X, not for PER_TOKEN

The product of int8 numbers is multiplied by act_scale * per_channel_scale, so that the
pair (X, W) gives the sum; NVIDIA's converter writes (Y, X * W / Y) with Y the scale of
the outputs, which is the same product with more rounding.

The network of plain operations (`W8A8_SQ_PER_CHANNEL`), always static:

    weight int8 [N, K], weights_scaling_factor f32 [N], activation_scaling_factor f32
    [1], prequant_scaling_factor D [K]

Smoothing has been folded into the weights and into the layers before, so that
`smoother` and `prequant_scaling_factor` are ones.

Sources: TensorRT-LLM 0.8.0 to 0.16, quantization/layers.py `SmoothQuantLinear`,
`SmoothQuantRowLinear`, `SmoothQuantAttention`, `SmoothQuantMLP`, `SmoothQuantRmsNorm`,
`Int8SmoothQuantLinear`; quantization/functional.py `smooth_quant_gemm`,
`quantize_tensor`; models/llama/convert.py `get_tllm_linear_sq_weight`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmi_build.backends.trtllm.linear import Inexact, Role, exactly, signed_codes
from lmi_build.backends.trtllm.quant_config import (
    PER_TENSOR,
    PER_TOKEN,
    PLAIN,
    PLUGINS,
)

if TYPE_CHECKING:
    from lmi_build.checkpoint.formats.codec import Codes

BITS = 8


def smoothquant_tensors(
    codes: Codes,
    algorithm: str,
    dtype: torch.dtype,
    *,
    role: Role,
    input_scale: Tensor | None,
) -> dict[str, Tensor]:
    """
    The tensors of one linear, without its bias.

    Args:
        codes: Eight-bit codes with a scale per output or one for all.
        algorithm: A name of `PLUGINS`, or `PLAIN`.
        dtype: Of the checkpoint.
        role: Where the linear stands.
        input_scale: float32, one number or one per part; not used per token.

    Raises:
        Inexact: Groups, zero points, or outputs that do not share the scale they must.
        ValueError: Static activations without an input scale.
    """
    if codes.scale_GO.shape[0] != 1:
        raise Inexact(f"{algorithm} has one scale a row, not {codes.scale_GO.shape[0]}")
    code_OI = signed_codes(codes, BITS, algorithm)
    scale_O = codes.scale_GO[0].to(torch.float32).contiguous()
    num_outputs, num_inputs = code_OI.shape
    if algorithm == PLAIN:
        return {
            "weight": code_OI,
            "weights_scaling_factor": scale_O,
            "activation_scaling_factor": shared_scale(input_scale, algorithm),
            "prequant_scaling_factor": torch.ones(num_inputs, dtype=dtype),
        }
    if algorithm in PER_TENSOR and role != "qkv":
        if bool((scale_O != scale_O[0]).any()):
            raise Inexact(
                f"{algorithm} has one scale for a whole matrix, and these"
                f" {num_outputs} outputs have {len(set(scale_O.tolist()))}"
            )
        scale_O = scale_O[:1].clone()
    tensors = {"weight": code_OI, "per_channel_scale": scale_O.reshape(1, -1)}
    if algorithm not in PER_TOKEN:
        tensors["act_scale"] = shared_scale(input_scale, algorithm).reshape(1, 1)
    if role == "row":
        tensors["smoother"] = torch.ones(1, num_inputs)
    return tensors


def smoothquant_shapes(
    num_inputs: int, num_outputs: int, algorithm: str, dtype: str, *, role: Role
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes of what `smoothquant_tensors` gives."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "weight": ("int8", (num_outputs, num_inputs))
    }
    if algorithm == PLAIN:
        return shapes | {
            "weights_scaling_factor": ("float32", (num_outputs,)),
            "activation_scaling_factor": ("float32", (1,)),
            "prequant_scaling_factor": (dtype, (num_inputs,)),
        }
    shared = algorithm in PER_TENSOR and role != "qkv"
    shapes["per_channel_scale"] = ("float32", (1, 1 if shared else num_outputs))
    if algorithm not in PER_TOKEN:
        shapes["act_scale"] = ("float32", (1, 1))
    if role == "row":
        shapes["smoother"] = ("float32", (1, num_inputs))
    return shapes


def norm_scale(
    input_scale: Tensor | None, algorithm: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """
    What the norm before `qkv` or `fc` needs beside its weights.

    Args:
        input_scale: Of the linears that read it; the largest counts.
        algorithm: Any; all but the plugins' give nothing.
        dtype: Of the checkpoint.

    Returns:
        `scale_to_int` [1].

    Raises:
        Inexact: The scale is too small or too large for the dtype.
    """
    if algorithm not in PLUGINS:
        return {}
    if algorithm in PER_TOKEN:
        return {"scale_to_int": torch.ones(1, dtype=dtype)}
    inverse = (1.0 / shared_scale(input_scale, algorithm)).to(dtype)
    if not bool(torch.isfinite(inverse).all()) or not bool(inverse.all()):
        raise Inexact(
            f"an input scale of {float(shared_scale(input_scale, algorithm))!r} has no"
            f" inverse among {str(dtype).removeprefix('torch.')} numbers"
        )
    return {"scale_to_int": inverse}


def block_scale(input_scale: Tensor | None, algorithm: str) -> dict[str, Tensor]:
    """
    What `attention` needs for `dense`, and `mlp` for `proj`.

    Returns:
        `quantization_scaling_factor` float32 [1], or nothing.
    """
    if algorithm not in PLUGINS or algorithm in PER_TOKEN:
        return {}
    inverse = 1.0 / shared_scale(input_scale, algorithm)
    return {"quantization_scaling_factor": inverse}


def shared_scale(input_scale: Tensor | None, algorithm: str) -> Tensor:
    """One input scale float32 [1] for all parts: the largest, so that none clips."""
    if input_scale is None:
        raise ValueError(f"{algorithm} has static activations and no input scale")
    return exactly(input_scale, torch.float32, "input scales").amax().reshape(1)
