"""
Whether lmi-build can write a model's TensorRT-LLM checkpoint, from headers alone.

The plan and the worker ask the same questions here, the one before and the other after
quantization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.checkpoint_plan import plan_checkpoint
from lmi_build.backends.trtllm.checkpoint_sources import source_problems
from lmi_build.backends.trtllm.class_checks import bias_problems, class_problems
from lmi_build.backends.trtllm.coded_checks import coding_problems
from lmi_build.backends.trtllm.models import (
    known_architectures,
    trtllm_models,
    value_at,
)
from lmi_build.backends.trtllm.source_model import source_model
from lmi_build.backends.trtllm.split_checks import split_problems
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
    from lmi_build.backends.trtllm.coded_checks import Coding
    from lmi_build.values.model import ModelGeometry

DTYPES = ("float16", "bfloat16", "float32")


def checkpoint_problems(
    geometry: ModelGeometry,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    version: str,
    dtype: str,
    mapping: Mapping2D,
    quantized: frozenset[str] = frozenset(),
    coding: Coding | None = None,
) -> Iterator[Problem]:
    """
    Every reason why the checkpoint cannot be written.

    Args:
        geometry: The model's sizes.
        config: Its `config.json`.
        shapes: Shape of every tensor, from the headers; empty if they are not known,
            which leaves out the checks of tensors.
        version: Of TensorRT-LLM.
        dtype: Of the checkpoint.
        mapping: How it is to be split.
        quantized: Linears that the files hold as codes.
        coding: What its linears become; None where they stay in float.
    """
    refused = architecture_problem(geometry.architecture, version)
    if refused is not None:
        yield refused
        return
    if dtype not in DTYPES:
        yield Problem(
            code="trtllm.dtype",
            message=f"a checkpoint cannot hold {dtype}",
            path="model.dtype",
            hint=f"choose one of {', '.join(DTYPES)}",
        )
    model = source_model(
        geometry, config, shapes, version=version, dtype=dtype, quantized=quantized
    )
    problems = [
        *class_problems(model, config, version),
        *split_problems(
            model.row,
            geometry,
            mapping,
            version,
            parallel_embedding=model.parallel_embedding,
        ),
    ]
    if coding is not None and not problems:
        problems += coding_problems(model, mapping, coding)
    yield from problems
    if shapes and not problems:
        yield from bias_problems(model)
        yield from source_problems(model, plan_checkpoint(model, mapping))


def architecture_problem(name: str, version: str) -> Problem | None:
    """Why a version does not have an architecture, or lmi-build no writer for it."""
    row = trtllm_models().get(name)
    if row is None or not row.supported(version):
        since = f"; it came with {row.since}" if row else ""
        return Problem(
            code="trtllm.architecture",
            message=f"TensorRT-LLM {version} has no `{name}`{since}",
            path="model.source",
            hint=f"it has {known_architectures(version)}",
            unsupported=True,
        )
    if not row.writable(version):
        writable = [n for n, r in trtllm_models().items() if r.writable(version)]
        return Problem(
            code="trtllm.no-writer",
            message=f"lmi-build does not write checkpoints of `{name}` for TensorRT-LLM"
            f" {version}",
            path="model.source",
            hint="let NVIDIA's converter do it in the container:"
            f" `{value_at(row.converter, version)}`; lmi-build writes"
            f" {', '.join(sorted(writable))}",
            unsupported=True,
        )
    return None
