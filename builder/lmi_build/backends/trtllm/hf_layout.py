"""
One linear as TensorRT-LLM's PyTorch backend reads it from a Hugging Face folder.

Bytes are those of NVIDIA's Model Optimizer, see `checkpoint.formats.modelopt`. Numbers
are those of the checkpoint: codes are moved, scales widened to float32.

`pre_quant_scale` is a vector of ones: our scales stand in the norms and the linears
before. The backend asks for it wherever a linear stands alone, and does not look at it
where it joins q, k and v, or gate and up.

Shape suffixes: I input channels, O output channels, G groups of I.

Source: TensorRT-LLM of October 2025, `_torch/modules/linear.py`; nvidia-modelopt 0.47
`torch/export/quant_utils.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.backends.trtllm.hf_checks import W4A16_AWQ, W8A16
from lmi_build.backends.trtllm.int4_layout import pack_outputs
from lmi_build.backends.trtllm.linear import Inexact, signed_codes
from lmi_build.checkpoint.writer import TensorPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmi_build.checkpoint.formats.codec import Codes

FP8 = "FP8"
FP8_ROWS = "FP8_PER_CHANNEL_PER_TOKEN"


def hf_plans(
    name: str,
    sizes: tuple[int, int],
    algo: str,
    *,
    group_size: int,
    static: bool,
    alone: bool,
    dtype: str,
) -> tuple[TensorPlan, ...]:
    """
    Names, dtypes and shapes of what `hf_tensors` gives.

    Args:
        name: Module name.
        sizes: O and I.
        algo: A `quant_algo`.
        group_size: Input channels per scale, for `W4A16_AWQ`.
        static: Whether activations have a scale on disk.
        alone: Whether the backend joins it with no other.
        dtype: Of the model, for `pre_quant_scale`.
    """
    num_outputs, num_inputs = sizes
    weight, scale = {
        W4A16_AWQ: (
            ("uint8", (num_outputs // 2, num_inputs)),
            (num_outputs, num_inputs // max(1, group_size)),
        ),
        W8A16: (("int8", (num_outputs, num_inputs)), (num_outputs,)),
        FP8: (("float8_e4m3fn", (num_outputs, num_inputs)), ()),
        FP8_ROWS: (("float8_e4m3fn", (num_outputs, num_inputs)), (num_outputs,)),
    }[algo]
    parts: dict[str, tuple[str, tuple[int, ...]]] = {
        "weight": weight,
        "weight_scale": ("float32", scale),
    }
    if algo == W4A16_AWQ and alone:
        parts["pre_quant_scale"] = (dtype, (num_inputs,))
    if algo == FP8 and static:
        parts["input_scale"] = ("float32", ())
    return tuple(
        TensorPlan(name=f"{name}.{part}", dtype=kind, shape=shape)
        for part, (kind, shape) in parts.items()
    )


def hf_tensors(
    name: str,
    codes: Codes,
    algo: str,
    plans: Sequence[TensorPlan],
    *,
    input_scale: Tensor | None = None,
) -> dict[str, Tensor]:
    """
    The tensors of one linear.

    Args:
        name: Module name.
        codes: Out of any format.
        algo: A `quant_algo`.
        plans: From `hf_plans`.
        input_scale: Of static activations.

    Returns:
        Tensors by full name, as the plans say.

    Raises:
        Inexact: Zero points, channels in activation order, or several scales where
            the algorithm has one.
    """
    if codes.group_I is not None:
        raise Inexact("channels are in activation order")
    own = {
        "weight": _weight(codes, algo),
        "weight_scale": _weight_scale(codes, algo),
    }
    for plan in plans:
        part = plan.name.removeprefix(f"{name}.")
        if part == "pre_quant_scale":
            own[part] = torch.ones(plan.shape, dtype=getattr(torch, plan.dtype))
        elif part == "input_scale":
            if input_scale is None:
                raise Inexact("activations are static, and there is no `input_scale`")
            own[part] = input_scale.to(torch.float32).reshape(())
    return {f"{name}.{part}": tensor.contiguous() for part, tensor in own.items()}


def _weight(codes: Codes, algo: str) -> Tensor:
    if algo == W4A16_AWQ:
        return pack_outputs(signed_codes(codes, 4, algo)).view(torch.uint8)
    if algo == W8A16:
        return signed_codes(codes, 8, algo)
    return codes.code_IO.T.contiguous()


def _weight_scale(codes: Codes, algo: str) -> Tensor:
    scale_OG = codes.scale_GO.T.to(torch.float32)
    if algo == W4A16_AWQ:
        return scale_OG
    if scale_OG.shape[1] != 1:
        raise Inexact(f"{algo} has one scale a row, not {scale_OG.shape[1]}")
    if algo != FP8:
        return scale_OG[:, 0]
    if bool((scale_OG != scale_OG[0]).any()):
        raise Inexact("FP8 has one scale for the whole matrix, and rows differ")
    return scale_OG[0, 0]
