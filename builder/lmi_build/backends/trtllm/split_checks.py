"""
Whether ranks and pipeline stages divide a model, from its sizes alone.

Sources: TensorRT-LLM 0.8.0 to 0.16, mapping.py for how layers are split,
models/*/model.py for which classes have pipeline stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.models import is_since
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.trtllm.checkpoint_plan import SourceModel
    from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D

TENSOR_PATH = "compile.tensor_parallel_size"
PIPELINE_PATH = "compile.pipeline_parallel_size"


def split_problems(
    model: SourceModel, mapping: Mapping2D, version: str
) -> Iterator[Problem]:
    """What the numbers of ranks do not divide."""
    geometry, tp = model.geometry, mapping.tp
    sizes = {
        "attention heads": geometry.num_attention_heads,
        "intermediate size": geometry.intermediate_size,
    }
    if model.parallel_embedding:
        sizes["vocabulary"] = geometry.vocab_size
    for what, size in sizes.items():
        if size % tp:
            yield _indivisible(what, size, tp, sizes)
    keys = geometry.num_key_value_heads
    if max(keys, tp) % min(keys, tp):
        yield _indivisible("key-value heads", keys, tp, {**sizes, "": keys})
    yield from _stage_problems(model, mapping, version)


def _indivisible(what: str, size: int, tp: int, sizes: Mapping[str, int]) -> Problem:
    fits = [n for n in range(1, tp) if all(s % n == 0 for s in sizes.values())]
    return Problem(
        code="trtllm.tensor-parallel",
        message=f"tensor_parallel_size {tp} does not divide the model's {what}: {size}",
        path=TENSOR_PATH,
        hint=f"set it to {fits[-1]}" if fits else "set it to 1",
    )


def _stage_problems(
    model: SourceModel, mapping: Mapping2D, version: str
) -> Iterator[Problem]:
    pp, layers = mapping.pp, model.geometry.num_layers
    if pp == 1:
        return
    if model.shared_head or not is_since(version, model.row.pipeline):
        since = "" if model.shared_head else model.row.pipeline
        yield Problem(
            code="trtllm.pipeline-parallel",
            message=f"TensorRT-LLM {version} has no pipeline stages for"
            f" `{model.row.name}`" + (f"; they came with {since}" if since else ""),
            path=PIPELINE_PATH,
            hint="set it to 1, and tensor_parallel_size to the number of devices",
            unsupported=True,
        )
    elif layers % pp:
        fits = max(n for n in range(1, pp) if layers % n == 0)
        yield Problem(
            code="trtllm.pipeline-parallel",
            message=f"pipeline_parallel_size {pp} does not divide the model's"
            f" {layers} layers; TensorRT-LLM would leave some out",
            path=PIPELINE_PATH,
            hint=f"set it to {fits}",
        )
