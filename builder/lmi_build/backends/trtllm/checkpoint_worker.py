"""Converts a checkpoint of Hugging Face to TensorRT-LLM's, in a worker process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.checkpoint_checks import (
    checkpoint_problems,
    source_model,
)
from lmi_build.backends.trtllm.checkpoint_config import (
    Quantization,
    attention_window,
    pretrained_config,
)
from lmi_build.backends.trtllm.checkpoint_ledger import shard_rows, write_shard_ledger
from lmi_build.backends.trtllm.checkpoint_plan import plan_checkpoint, unused
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.checkpoint_writer import num_sources, write_ranks
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.errors import SourceInvalid, Unsupported
from lmi_build.events import StageNote, StageProgress
from lmi_build.values.model import geometry_from_config

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.events import Emit
    from lmi_build.spi import Job, Params

CONFIG_NAME = "config.json"
FLOATS = ("float64", "float32", "float16", "bfloat16")


def checkpoint_params(version: str, dtype: str, mapping: Mapping2D) -> Params:
    """
    The worker's parameters.

    Args:
        version: Of TensorRT-LLM.
        dtype: Of the checkpoint.
        mapping: How it is split.
    """
    params: dict[str, JSONValue] = {
        "trtllm": version,
        "dtype": dtype,
        "tensor_parallel_size": mapping.tp,
        "pipeline_parallel_size": mapping.pp,
    }
    return params


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out` with `config.json`, a file per rank and the ledger.

    Raises:
        SourceInvalid: The model is broken, or not what its config.json says.
        Unsupported: TensorRT-LLM cannot compute it, or a weight does not fit.
        StageFailed: Something was left unwritten.
    """
    folder, params = job.inputs["checkpoint"], job.params
    config = read_config(folder)
    version, dtype = str(params["trtllm"]), str(params["dtype"])
    mapping = Mapping2D(
        tp=int(params["tensor_parallel_size"]),  # type: ignore[arg-type]
        pp=int(params["pipeline_parallel_size"]),  # type: ignore[arg-type]
    )
    geometry = geometry_from_config(config)
    with CheckpointReader(folder) as reader:
        entries = reader.tensors
        shapes = {name: entry.shape for name, entry in entries.items()}
        for problem in checkpoint_problems(
            geometry, config, shapes, version=version, dtype=dtype, mapping=mapping
        ):
            raise _refused(problem)
        model = source_model(geometry, config, shapes, dtype)
        plans = plan_checkpoint(model, mapping)
        _check_dtypes(reader, unused(model))
        total = num_sources(plans)

        def on_source(done: int) -> None:
            event = StageProgress(
                stage=job.stage, done=done, total=total, unit="tensors"
            )
            emit(event)

        write_ranks(job.out, reader, plans, on_source=on_source)
    document = pretrained_config(model, config, version, mapping, Quantization())
    rows = shard_rows(entries.values(), plans, {})
    write_shard_ledger(job.out, rows)
    window = attention_window(model, config)
    if window is not None:
        _tell_window(job, emit, window)
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    (job.out / CONFIG_NAME).write_text(text, "utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """
    The model's `config.json`.

    Raises:
        SourceInvalid: It is missing, or no JSON object.
    """
    try:
        config = json.loads((folder / CONFIG_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise _broken_config(str(error)) from error
    if not isinstance(config, dict):
        raise _broken_config("it is no JSON object")
    return config


def _broken_config(detail: str) -> SourceInvalid:
    return SourceInvalid(
        f"the model's config.json cannot be read: {detail}",
        code="trtllm.config-broken",
        hints=("fetch the model again",),
    )


def _refused(problem: Problem) -> SourceInvalid | Unsupported:
    kind = Unsupported if problem.unsupported else SourceInvalid
    return kind(problem.message, code=problem.code, hints=(problem.hint,))


def _check_dtypes(reader: CheckpointReader, ignored: tuple[str, ...]) -> None:
    """Everything copied is float; codes are another matter."""
    for name, entry in reader.tensors.items():
        if entry.dtype not in FLOATS and name not in ignored:
            raise Unsupported(
                f"`{name}` holds {entry.dtype}: the model is quantized in a way that"
                " this checkpoint cannot say",
                code="trtllm.source-dtype",
                hints=("start from the model in float16 or bfloat16",),
            )


def _tell_window(job: Job, emit: Emit, window: int) -> None:
    emit(
        StageNote(
            stage=job.stage,
            level="warning",
            code="trtllm.attention-window",
            message=f"blocks attend to {window} tokens; a checkpoint cannot say so, and"
            f" the server needs `max_attention_window_size: {window}` for longer ones",
        )
    )
