"""
W4A16_AWQ: four-bit codes with a scale per group, as they are before kernels' order.

The loader itself brings the weights into the order of the kernels of the GPU it runs
on (`preprocess_weights`), so this layout belongs to no GPU:

    weight                  int8 [N/2, K]: outputs 2j and 2j+1 in the low and high half
                            of row j, each a signed number from -8 to 7
    weights_scaling_factor  D [N, K/G]
    zero                    D [K/G, N], (8 - zero point) * scale, only where the
                            checkpoint says `has_zero_point`

A weight is `code * scale + zero` with the signed code. The kernel is the one that GPTQ
checkpoints run on as well, so every checkpoint of four-bit groups fits here, whoever
chose its numbers.

`prequant_scaling_factor` multiplies the inputs at run time. AWQ's scales are folded
into the layer before, so there is none: with `pre_quant_scale: false` the class does
not declare it, and the kernel that multiplies is not run at all.

Scales [N, K/G] are turned around on load, in 0.15 and 0.16 only where N > K/G. Other
shapes have no spelling that all releases read alike and are refused.

Shape suffixes: I input channels (K), O output channels (N), G groups of I.

Sources: TensorRT-LLM 0.8.0 to 0.16, quantization/layers.py
`WeightOnlyGroupwiseQuantLinear`, models/modeling_utils.py `preprocess_weights`;
cpp kernels/preQuantScaleKernel; nvidia-modelopt `pack_int4_in_uint8`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.backends.trtllm.linear import (
    Inexact,
    around_middle,
    check_bits,
    check_symmetric,
    exactly,
)
from lmi_build.backends.trtllm.linear_checks import awq_problem

if TYPE_CHECKING:
    from torch import Tensor

    from lmi_build.checkpoint.formats.codec import Codes

BITS = 4
MIDDLE = 8


def awq_tensors(codes: Codes, dtype: torch.dtype, *, zeros: bool) -> dict[str, Tensor]:
    """
    The tensors of one linear, without its bias.

    Args:
        codes: Four-bit codes in groups of 64 or 128 inputs.
        dtype: Of the checkpoint.
        zeros: Whether it says `has_zero_point`.

    Raises:
        Inexact: A scale is no number of that dtype, there are zero points where none
            can be written, or the shapes have no spelling.
    """
    (num_inputs, num_outputs), num_groups = codes.code_IO.shape, codes.scale_GO.shape[0]
    problem = awq_problem(num_inputs, num_outputs, num_inputs // num_groups)
    if problem:
        raise Inexact(problem)
    if zeros:
        check_bits(codes, BITS, "W4A16_AWQ")
    else:
        check_symmetric(codes, BITS, "W4A16_AWQ without `has_zero_point`")
    scale_GO = exactly(codes.scale_GO, dtype, "scales")
    tensors = {
        "weight": pack_outputs(around_middle(codes, BITS)),
        "weights_scaling_factor": scale_GO.T.contiguous(),
    }
    if zeros:
        tensors["zero"] = zero_times_scale(codes.zero_GO, scale_GO)
    return tensors


def awq_shapes(
    num_inputs: int, num_outputs: int, group_size: int, dtype: str, *, zeros: bool
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes of what `awq_tensors` gives."""
    num_groups = num_inputs // group_size
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "weight": ("int8", (num_outputs // 2, num_inputs)),
        "weights_scaling_factor": (dtype, (num_outputs, num_groups)),
    }
    if zeros:
        shapes["zero"] = (dtype, (num_groups, num_outputs))
    return shapes


def pack_outputs(code_OI: Tensor) -> Tensor:
    """Signed four-bit numbers [N, K] as int8 [N/2, K], the even output lower."""
    low_OI, high_OI = code_OI[0::2], code_OI[1::2]
    return ((low_OI & 0xF) | (high_OI << BITS)).contiguous()


def zero_times_scale(zero_GO: Tensor, scale_GO: Tensor) -> Tensor:
    """
    What the kernel adds to `code * scale`.

    A zero point of 8 adds nothing; others lose at most half a unit in the last place
    of D, as they do in every checkpoint of this kernel.
    """
    shift_GO = MIDDLE - zero_GO.to(torch.float32)
    return (shift_GO * scale_GO.to(torch.float32)).to(scale_GO.dtype).contiguous()
