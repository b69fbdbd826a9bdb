"""
One linear of a model as the tensors of TensorRT-LLM's unified checkpoint.

A checkpoint holds fused linears, already cut for one rank: `qkv` is q, k and v one
below the other, `fc` and `gate` stay apart. What a linear consists of depends on
`quantization.quant_algo` of its `config.json`; a linear that is float although the
checkpoint is quantized, such as `lm_head`, is laid out with the algorithm `""`:

    ""              weight D [N, K]
    W4A16_AWQ       module `int4_layout`
    W8A8_SQ_*       module `int8_layout`
    W8A16, W4A16    codes: module `kernel_order`; float: weight D [N, K], which
                    `trtllm-build` rounds itself

each with a `bias` D [N] where the linear has one. K is the inputs of the rank, N its
outputs, D the dtype of the checkpoint. Experts have the same tensors with one more axis
in front.

Nothing is rounded here: what a layout cannot say exactly is refused.

Float weights under W8A16 or W4A16 are rounded on a grid of `trtllm-build`'s own, with
the step max |w| / 2^(bits - 1) in each row. Weights that lie on our grid do not stay
there: where a row reaches from -127 to 127, its steps become 127 / 128 as wide and half
of its codes change. So codes are written in the kernels' order, and float weights only
where no method has chosen codes.

Sources: TensorRT-LLM 0.8.0, 0.10.0, 0.11 to 0.16: quantization/layers.py (what is
declared), models/modeling_utils.py `preprocess_weights` and commands/build.py of 0.8
(what is converted on load), models/convert_utils.py `weight_only_quantize_dict`,
cpp kernels/cutlass_kernels/cutlass_preprocessors.cpp `symmetric_quantize`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmi_build.backends.trtllm.int4_layout import awq_shapes, awq_tensors
from lmi_build.backends.trtllm.int8_layout import (
    block_scale,
    norm_scale,
    smoothquant_shapes,
    smoothquant_tensors,
)
from lmi_build.backends.trtllm.kernel_order import (
    weight_only_shapes,
    weight_only_tensors,
)
from lmi_build.backends.trtllm.linear import (
    FusedLinear,
    Role,
    exactly,
    join_outputs,
)
from lmi_build.backends.trtllm.quant_config import AWQ, PLAIN, PLUGINS

if TYPE_CHECKING:
    from typing import TypeAlias

    Shapes: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]

WEIGHT_ONLY = frozenset({"W8A16", "W4A16"})
SMOOTHQUANT = PLUGINS | {PLAIN}
ALGORITHMS = ("", AWQ, *sorted(SMOOTHQUANT), *sorted(WEIGHT_ONLY, reverse=True))


def linear_tensors(linear: FusedLinear, algorithm: str) -> dict[str, Tensor]:
    """
    The tensors of one linear.

    Args:
        linear: Its parts, cut for the rank.
        algorithm: `quant_algo`, or `""` for a linear that is float.

    Returns:
        Contiguous tensors by what follows the linear's name: `weight`, `bias` ...; with
        dtypes and shapes as `linear_shapes` says.

    Raises:
        Inexact: The layout would change a number.
        ValueError: Parts and algorithm do not belong together.
    """
    dtype = getattr(torch, linear.dtype)
    joined = join_outputs(linear.parts)
    if isinstance(joined, Tensor):
        if algorithm and algorithm not in WEIGHT_ONLY:
            raise ValueError(f"{algorithm} wants codes, and this linear is float")
        tensors = {"weight": joined.to(dtype).contiguous()}
    elif algorithm == AWQ:
        tensors = awq_tensors(joined, dtype, zeros=linear.zero_points)
    elif algorithm in SMOOTHQUANT:
        tensors = smoothquant_tensors(
            joined,
            algorithm,
            dtype,
            role=linear.role,
            input_scale=linear.input_scale,
        )
    elif algorithm in WEIGHT_ONLY:
        tensors = weight_only_tensors(joined, algorithm, dtype)
    else:
        raise ValueError(f"no layout for codes under the algorithm `{algorithm}`")
    if linear.bias is not None:
        tensors["bias"] = linear.bias.to(dtype).contiguous()
    return tensors


def linear_shapes(  # noqa: PLR0913
    num_inputs: int,
    num_outputs: int,
    algorithm: str,
    *,
    group_size: int,
    dtype: str,
    has_bias: bool,
    role: Role = "column",
    zero_points: bool = False,
    coded: bool = True,
) -> Shapes:
    """
    What `linear_tensors` gives, before any weight is read.

    Args:
        num_inputs: Of the rank.
        num_outputs: Of the rank, all parts together.
        algorithm: `quant_algo`, or `""` for a linear that is float.
        group_size: Inputs per scale; only W4A16_AWQ has groups.
        dtype: Of the checkpoint.
        has_bias: Whether there is a bias.
        role: Where the linear stands.
        zero_points: Whether the checkpoint says `has_zero_point`.
        coded: Whether a W8A16 or W4A16 linear comes as codes; otherwise it is float.

    Returns:
        Dtype and shape by what follows the linear's name.
    """
    if algorithm == AWQ:
        shapes = awq_shapes(
            num_inputs, num_outputs, group_size, dtype, zeros=zero_points
        )
    elif algorithm in SMOOTHQUANT:
        shapes = smoothquant_shapes(
            num_inputs, num_outputs, algorithm, dtype, role=role
        )
    elif algorithm in WEIGHT_ONLY and coded:
        shapes = weight_only_shapes(num_inputs, num_outputs, algorithm, dtype)
    else:
        shapes = {"weight": (dtype, (num_outputs, num_inputs))}
    if has_bias:
        shapes["bias"] = (dtype, (num_outputs,))
    return shapes


def norm_tensors(linear: FusedLinear, algorithm: str) -> dict[str, Tensor]:
    """What the norm before a `qkv` or `fc` gets: `scale_to_int` D [1], or nothing."""
    return norm_scale(linear.input_scale, algorithm, getattr(torch, linear.dtype))


def block_tensors(linear: FusedLinear, algorithm: str) -> dict[str, Tensor]:
    """
    What `attention` gets for its `dense`, or `mlp` for its `proj`.

    Returns:
        `quantization_scaling_factor` float32 [1], or nothing.
    """
    return block_scale(linear.input_scale, algorithm)


def kv_cache_tensors(key_scale: Tensor, value_scale: Tensor) -> dict[str, Tensor]:
    """
    What `attention` gets where keys and values are cached in eight bits.

    Args:
        key_scale: float32, one number or one per head: a step of int8, or absmax / 448.
        value_scale: The same.

    Returns:
        `kv_cache_scaling_factor` float32 [1], the largest: the cache has one scale for
        both.
    """
    scales = torch.cat((key_scale.reshape(-1), value_scale.reshape(-1)))
    shared = exactly(scales, torch.float32, "scales of the cache").amax()
    return {"kv_cache_scaling_factor": shared.reshape(1)}
