"""
Whether a linear has a place in a layout on every rank, from its sizes alone.

Releases since 0.13 pad linears whose sizes their kernels do not divide, and then want
padded tensors, which only their own converter makes: from a finished checkpoint such a
linear is refused with a message about shapes. The multiples count for both sizes of the
whole linear, times the ranks, whichever side is cut.

Sources: TensorRT-LLM 0.14 and 0.16 quantization/layers.py (`is_padded`),
cpp kernels/cutlass_kernels/cutlass_preprocessors.cpp; 0.10 to 0.16
models/modeling_utils.py `preprocess_perlayer_weights`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.quant_config import AWQ, release_of

if TYPE_CHECKING:
    from lmi_build.backends.trtllm.checkpoint_shards import Role

WEIGHT_ONLY = ("W8A16", "W4A16")
# What the kernels of groups are compiled for, and of how many inputs or outputs the
# order of the others has runs.
GROUP_SIZES = (64, 128)
RUN_LEN = 64
PADDED_SINCE = (0, 13)


def linear_problem(
    num_inputs: int,
    num_outputs: int,
    algorithm: str,
    *,
    role: Role,
    group_size: int,
    tensor_parallel_size: int,
    trtllm: str,
) -> str:
    """
    Why a linear cannot be laid out for these ranks, or nothing.

    Args:
        num_inputs: Of the whole linear.
        num_outputs: Of the whole linear, all parts together; of keys and values as many
            as the ranks hold together, where they repeat heads.
        algorithm: `quant_algo`, or `""`.
        role: `row` is cut along its inputs, others along their outputs.
        group_size: Inputs per scale, -1 for a whole row.
        tensor_parallel_size: Ranks that share it.
        trtllm: Version that will read it.

    Returns:
        A message with the numbers, without the linear's name.
    """
    ranks = tensor_parallel_size
    cut, side = (num_inputs, "inputs") if role == "row" else (num_outputs, "outputs")
    if cut % ranks:
        return f"{ranks} ranks do not divide {cut} {side}"
    inputs = num_inputs // ranks if role == "row" else num_inputs
    outputs = num_outputs if role == "row" else num_outputs // ranks
    if algorithm == AWQ:
        if inputs % group_size:
            return (
                f"{ranks} ranks get {inputs} inputs each, which groups of {group_size}"
                " do not divide"
            )
        problem = awq_problem(inputs, outputs, group_size)
        multiple = max(RUN_LEN, group_size)
    elif algorithm in WEIGHT_ONLY:
        problem, multiple = order_problem(inputs, outputs, algorithm), RUN_LEN
    else:
        return ""
    if problem or release_of(trtllm) < PADDED_SINCE:
        return problem
    for what, count in (("inputs", num_inputs), ("outputs", num_outputs)):
        if count % (multiple * ranks):
            return (
                f"TensorRT-LLM {trtllm} pads {count} {what} to a multiple of"
                f" {multiple} x {ranks} ranks"
            )
    return ""


def awq_problem(num_inputs: int, num_outputs: int, group_size: int) -> str:
    """Why a rank's linear has no place in this layout, or nothing."""
    if group_size not in GROUP_SIZES:
        return (
            f"W4A16_AWQ has kernels for groups of {GROUP_SIZES[0]} and"
            f" {GROUP_SIZES[1]} inputs, not of {group_size}"
        )
    if num_inputs % group_size:
        return f"groups of {group_size} do not divide {num_inputs} inputs"
    if num_outputs % 2:
        return f"W4A16_AWQ packs outputs in pairs, and there are {num_outputs}"
    if num_outputs <= num_inputs // group_size:
        return (
            f"{num_outputs} outputs are not more than {num_inputs // group_size}"
            " groups; releases differ in how they read such scales"
        )
    return ""


def order_problem(num_inputs: int, num_outputs: int, algorithm: str) -> str:
    """Why a rank's linear has no kernel, or nothing."""
    for what, count in (("inputs", num_inputs), ("outputs", num_outputs)):
        if count % RUN_LEN:
            return (
                f"{algorithm} has kernels for multiples of {RUN_LEN} {what}, not for"
                f" {count}"
            )
    return ""
