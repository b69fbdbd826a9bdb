"""
Whether ranks and pipeline stages divide a model, from its sizes alone.

Up to 0.16 every stage gets the same number of layers, and what is left over is in none.
The first stages get one more each since commit c8e062bfd3 of 2025-05-20 (pull request
4399), which brought what reads the engine in line with what builds it; 0.21.0rc1 is the
first version here that was made after it.

Sources: TensorRT-LLM 0.8.0 to 0.16, mapping.py for how layers are split,
models/*/model.py for which classes have pipeline stages; 1.0, mapping.py `pp_layers`,
cpp runtime/modelConfig.h `getNbLayers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.models import is_since, value_at
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
    from lmi_build.backends.trtllm.models import TrtllmModel
    from lmi_build.values.model import ModelGeometry

TENSOR_PATH = "compile.tensor_parallel_size"
PIPELINE_PATH = "compile.pipeline_parallel_size"
# The first whose stages need not be equal.
UNEVEN_SINCE = "0.21"


def split_problems(
    row: TrtllmModel,
    geometry: ModelGeometry,
    mapping: Mapping2D,
    version: str,
    *,
    parallel_embedding: bool = False,
) -> Iterator[Problem]:
    """
    What the numbers of ranks and stages do not divide.

    Args:
        row: What TensorRT-LLM has for the architecture.
        geometry: The model's sizes.
        mapping: How it is to be split.
        version: Of TensorRT-LLM.
        parallel_embedding: The embedding is split over ranks.
    """
    tp = mapping.tp
    sizes = {
        "attention heads": geometry.num_attention_heads,
        "intermediate size": geometry.intermediate_size,
    }
    if parallel_embedding:
        sizes["vocabulary"] = geometry.vocab_size
    for what, size in sizes.items():
        if size % tp:
            yield _indivisible(what, size, tp, sizes)
    keys = geometry.num_key_value_heads
    if max(keys, tp) % min(keys, tp):
        yield _indivisible("key-value heads", keys, tp, {**sizes, "": keys})
    if mapping.pp > 1:
        yield from _stage_problems(row, mapping.pp, geometry.num_layers, version)


def _indivisible(what: str, size: int, tp: int, sizes: Mapping[str, int]) -> Problem:
    fits = [n for n in range(1, tp) if all(s % n == 0 for s in sizes.values())]
    return Problem(
        code="trtllm.tensor-parallel",
        message=f"tensor_parallel_size {tp} does not divide the model's {what}: {size}",
        path=TENSOR_PATH,
        hint=f"set it to {fits[-1]}" if fits else "set it to 1",
    )


def _stage_problems(
    row: TrtllmModel, pp: int, layers: int, version: str
) -> Iterator[Problem]:
    shared = bool(value_at(row.shared_head, version))
    if shared or not is_since(version, row.pipeline):
        since = "" if shared else row.pipeline
        yield Problem(
            code="trtllm.pipeline-parallel",
            message=f"TensorRT-LLM {version} has no pipeline stages for"
            f" `{row.name}`" + (f"; they came with {since}" if since else ""),
            path=PIPELINE_PATH,
            hint="set it to 1, and tensor_parallel_size to the number of devices",
            unsupported=True,
        )
    elif pp > layers:
        yield Problem(
            code="trtllm.pipeline-parallel",
            message=f"pipeline_parallel_size {pp} is more than the model's {layers}"
            " layers, and every stage needs one",
            path=PIPELINE_PATH,
            hint=f"set it to {layers}",
        )
    elif layers % pp and not is_since(version, UNEVEN_SINCE):
        fits = max(n for n in range(1, pp) if layers % n == 0)
        yield Problem(
            code="trtllm.pipeline-parallel",
            message=f"pipeline_parallel_size {pp} does not divide the model's"
            f" {layers} layers; TensorRT-LLM {version} would leave"
            f" {layers % pp} of them out",
            path=PIPELINE_PATH,
            hint=f"set it to {fits}, or choose a release with TensorRT-LLM"
            f" {UNEVEN_SINCE} or later",
        )
