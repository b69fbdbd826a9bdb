"""
Weight-only codes in the order that the mixed-precision kernels read them.

W8A16 and W4A16 checkpoints hold either float weights, which `trtllm-build` rounds on
its own grid, or codes that already lie as the kernels want them, which it takes as
they are. Only the second keeps our codes. The order, for a matrix of K inputs by N
outputs with one scale per output:

1. Every 16 inputs (8-bit) or 32 inputs (4-bit) are two or four runs of eight; they are
   dealt in pairs, 0 1 8 9 2 3 10 11 and so on, so that a warp's matrix load brings each
   thread the numbers that it multiplies.
2. Outputs come first: the matrix is turned around.
3. Outputs are taken in twos (8-bit) or fours (4-bit), and their inputs alternate in
   runs of 64, so that one cache line of 128 bytes serves them.
4. Codes are unsigned, and inside every 32-bit word come first the even ones, then the
   odd ones (8-bit: 0, 2, 1, 3).

The bytes are then declared as [K, N] or [K, N/2], although they no longer lie so. This
is what Turing, Ampere and Ada read (compute capability 7.5 to 8.9), in every release.
Hopper read three different orders by the release (0.8; 0.9 to 0.15; since 0.16), so for
it float weights are written instead.

Shape suffixes: I input channels (K), O output channels (N), G groups of I.

Sources: TensorRT-LLM 0.8.0 to 0.16, cpp kernels/cutlass_kernels/
cutlass_preprocessors.cpp `preprocess_weights_for_mixed_gemm`,
cutlass_extensions/gemm/kernel/mixed_gemm_B_layout.h; models/convert_utils.py
`weight_only_quantize_dict` (int8 tensors are left alone); 1.x, the same in Python:
quantization/functional.py `preprocess_weights_for_mixed_gemm`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmi_build.backends.trtllm.linear import Inexact, check_symmetric, exactly
from lmi_build.backends.trtllm.linear_checks import RUN_LEN, order_problem

if TYPE_CHECKING:
    from lmi_build.checkpoint.formats.codec import Codes

# Outputs whose inputs alternate.
PACK = {8: 2, 4: 4}
BITS = {"W8A16": 8, "W4A16": 4}
# First and last compute capability that read this order.
CAPABILITIES = ((7, 5), (8, 9))


def reads_order(capability: tuple[int, int]) -> bool:
    """Whether a GPU of this compute capability reads codes in this order."""
    first, last = CAPABILITIES
    return first <= capability <= last


def weight_only_tensors(
    codes: Codes, algorithm: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """
    The tensors of one linear, without its bias.

    Args:
        codes: Codes of a symmetric grid with one scale per output.
        algorithm: `W8A16` or `W4A16`.
        dtype: Of the checkpoint.

    Returns:
        `weight` int8 [K, N] or [K, N/2], and `per_channel_scale` [N].

    Raises:
        Inexact: Groups, zero points, a scale that is no number of the dtype, or a
            shape that the order does not divide.
    """
    bits = BITS[algorithm]
    if codes.scale_GO.shape[0] != 1:
        raise Inexact(f"{algorithm} has one scale a row, not {codes.scale_GO.shape[0]}")
    num_inputs, num_outputs = codes.code_IO.shape
    problem = order_problem(num_inputs, num_outputs, algorithm)
    if problem:
        raise Inexact(problem)
    check_symmetric(codes, bits, algorithm)
    return {
        "weight": kernel_order(codes.code_IO, bits),
        "per_channel_scale": exactly(codes.scale_GO[0], dtype, "scales").contiguous(),
    }


def weight_only_shapes(
    num_inputs: int, num_outputs: int, algorithm: str, dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes of what `weight_only_tensors` gives."""
    num_bytes = num_outputs * BITS[algorithm] // 8
    return {
        "weight": ("int8", (num_inputs, num_bytes)),
        "per_channel_scale": (dtype, (num_outputs,)),
    }


def kernel_order(code_IO: Tensor, bits: int) -> Tensor:
    """
    Codes as the kernels read them.

    Args:
        code_IO: Unsigned codes; both sizes are multiples of 64.
        bits: 8 or 4.

    Returns:
        int8 [K, N * bits / 8].
    """
    num_inputs, num_outputs = code_IO.shape
    pack = PACK[bits]
    # Inputs by run, group, eight, pair of the eight, and place in the pair.
    eights = 16 // bits
    groups = RUN_LEN // (8 * eights)
    code = code_IO.reshape(-1, groups, eights, 4, 2, num_outputs // pack, pack)
    # Steps 1 and 4 together: pairs come before eights, and in a word, which holds one
    # pair of all eights, first places come before second ones.
    code = code.permute(5, 0, 6, 1, 3, 4, 2)
    if bits == 4:  # noqa: PLR2004
        code = code[..., 0::2] | (code[..., 1::2] << 4)
    return code.reshape(-1).view(torch.int8).reshape(num_inputs, -1)
