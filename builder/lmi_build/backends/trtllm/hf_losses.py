"""Where TensorRT-LLM's loader silently computes otherwise than a folder means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.hf_checks import joined_group
from lmi_build.backends.trtllm.hf_layout import FP8
from lmi_build.backends.trtllm.hf_quantized import hf_formats
from lmi_build.events import StageNote

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from lmi_build.events import Emit
    from lmi_build.spi import Job
    from lmi_build.values.quant import QuantScheme


@dataclass(kw_only=True, slots=True)
class Losses:
    """
    What was found out while writing.

    Args:
        scales: Scale of each linear that has one number.
        rounded: Largest relative change of a scale in the model's dtype.
        num_rounded: Scales that change.
    """

    scales: dict[str, float] = field(default_factory=dict)
    rounded: float = 0.0
    num_rounded: int = 0


def observe(
    seen: Losses, name: str, tensors: Mapping[str, Tensor], algo: str, dtype: str
) -> None:
    """
    Take down what one linear loses.

    Args:
        seen: Gets it.
        name: Of the linear.
        tensors: What was written of it.
        algo: `quant_algo`.
        dtype: What the loader computes in.
    """
    import torch

    scale = tensors[f"{name}.weight_scale"]
    if algo == FP8:
        seen.scales[name] = float(scale)
    if hf_formats()[algo].scales_in_model_dtype:
        narrow = scale.to(getattr(torch, dtype)).to(torch.float32)
        changed = narrow != scale
        seen.num_rounded += int(changed.sum())
        if bool(changed.any()):
            relative = ((narrow - scale).abs() / scale.abs())[changed]
            seen.rounded = max(seen.rounded, float(relative.max()))


def tell_losses(
    job: Job,
    emit: Emit,
    seen: Losses,
    *,
    linears: Collection[str],
    scheme: QuantScheme,
    algo: str,
    dtype: str,
) -> None:
    """
    Say what the loader will do, as notes of the stage.

    Args:
        job: The stage.
        emit: Gets the notes.
        seen: What was found out while writing.
        linears: Every quantized linear.
        scheme: Of the source.
        algo: `quant_algo`.
        dtype: What the loader computes in.
    """
    rescaled = _rescaled(seen, linears)
    if rescaled:
        _note(job, emit, "compile.hf-rescaled", rescaled)
    if seen.num_rounded:
        _note(
            job,
            emit,
            "compile.hf-scales",
            f"TensorRT-LLM keeps scales in the model's {dtype}: {seen.num_rounded} of"
            f" them change, by {seen.rounded:.2g} at most; `model.dtype: float16` keeps"
            " float16 scales exact",
        )
    if algo == FP8 and scheme.activation_scheme == "dynamic":
        _note(
            job,
            emit,
            "compile.hf-activations",
            "TensorRT-LLM scales dynamic activations by the whole batch, not by token",
        )
    if scheme.kv_cache_dtype == "fp8":
        _note(
            job,
            emit,
            "compile.hf-cache",
            "TensorRT-LLM's PyTorch backend keeps an fp8 cache with a scale of 1; the"
            " scales of the checkpoint are written and not used by it",
        )


def _rescaled(seen: Losses, linears: Collection[str]) -> str:
    """What joining layers of different scales costs; empty where all are equal."""
    groups = {joined_group(name, linears) for name in seen.scales} - {()}
    apart = [
        group for group in groups if len({seen.scales[name] for name in group}) > 1
    ]
    if not apart:
        return ""
    ratio = max(
        max(scales) / min(scales)
        for scales in ([seen.scales[name] for name in group] for group in apart)
    )
    return (
        f"{len(apart)} of {len(groups)} joined layers (q, k, v or gate, up) have"
        f" different scales, up to {ratio:.3g} times apart: TensorRT-LLM rounds"
        " their fp8 weights again to the largest; `granularity: channel` with"
        " release 1.0 keeps them"
    )


def _note(job: Job, emit: Emit, code: str, message: str) -> None:
    emit(StageNote(stage=job.stage, level="warning", code=code, message=message))
