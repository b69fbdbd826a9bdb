"""
What NVIDIA's converter takes for granted in a GPTQ folder.

`convert_checkpoint.py` reads `qweight`, `qzeros` and `scales`, and never `g_idx`; it
adds one to every zero point and checks neither. Of what it does not read it says
nothing, so a folder it is given must be of the one kind that it means.

Our own writer needs none of this: four-bit groups of 64 or 128 fit W4A16_AWQ, whose
kernel is the same, see `int4_layout`.

Sources: TensorRT-LLM 0.8.0 models/llama/weight.py `load_from_gptq_llama`; 0.10 to 0.16
models/llama/convert.py `load_weights_from_gptq`, examples/llama/convert_checkpoint.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.quant_config import release_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from lmi_build.values.quant import QuantScheme

GROUP_SIZES = (64, 128)
BITS = {4: (0, 8), 8: (0, 15)}


def gptq_folder_problems(
    scheme: QuantScheme,
    *,
    files: Collection[str],
    tensors: Collection[str],
    trtllm: str,
    pipeline_parallel_size: int = 1,
) -> list[str]:
    """
    Everything that keeps the converter from reading a folder right.

    Args:
        scheme: Of the folder.
        files: Its weight files.
        tensors: Names of its tensors.
        trtllm: Version of the converter.
        pipeline_parallel_size: Pipeline stages that are asked for.

    Returns:
        Messages; none where the folder is fine.
    """
    found = _scheme_faults(scheme, trtllm)
    if len(files) != 1:
        found.append(f"the converter opens one file, and there are {len(files)}")
    if "lm_head.weight" not in tensors:
        found.append(
            "the converter asks for a float `lm_head.weight`, and there is none:"
            " tied to the embedding, or quantized"
        )
    if pipeline_parallel_size > 1:
        found.append(
            "the converter gives every pipeline stage the layers of the first, and"
            f" there are {pipeline_parallel_size} stages"
        )
    return found


def _scheme_faults(scheme: QuantScheme, trtllm: str) -> list[str]:
    """What the converter would read wrong of the quantized weights themselves."""
    found = []
    if scheme.packing != "gptq":
        found.append(
            f"the converter adds one to zero points, and packing `{scheme.packing}`"
            " does not store them less one"
        )
    if scheme.act_order:
        found.append(
            "the converter does not read the group index, and `desc_act` is true"
        )
    if not scheme.sym:
        found.append(
            "for a folder the converter sets `has_zero_point` to `sym`, so zero points"
            " of an asymmetric one would be left out"
        )
    since = BITS.get(scheme.weight_bits)
    if since is None or release_of(trtllm) < since:
        found.append(
            f"the converter of {trtllm} has no {scheme.weight_bits}-bit GPTQ weights"
        )
    if scheme.group_size not in GROUP_SIZES:
        found.append(
            f"kernels are there for groups of {GROUP_SIZES[0]} and {GROUP_SIZES[1]}"
            f" inputs, not of {scheme.group_size}"
        )
    if scheme.scale_dtype != "float16":
        found.append(f"scales are read as float16, and these are {scheme.scale_dtype}")
    return found
