"""Converts a checkpoint of Hugging Face to TensorRT-LLM's, in a worker process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.checkpoint_checks import checkpoint_problems
from lmi_build.backends.trtllm.checkpoint_config import (
    attention_window,
    pretrained_config,
)
from lmi_build.backends.trtllm.checkpoint_ledger import shard_rows, write_shard_ledger
from lmi_build.backends.trtllm.checkpoint_plan import plan_checkpoint
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.checkpoint_sources import unused
from lmi_build.backends.trtllm.coded_checks import Coding
from lmi_build.backends.trtllm.coded_names import coded_modules, float_weights
from lmi_build.backends.trtllm.quant_config import quant_config
from lmi_build.backends.trtllm.source_model import source_model
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.errors import SourceInvalid, Unsupported
from lmi_build.events import StageNote, StageProgress
from lmi_build.values.model import geometry_from_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lmi_build.backends.trtllm.checkpoint_plan import RankPlan
    from lmi_build.backends.trtllm.checkpoint_writer import CodedLinears
    from lmi_build.backends.trtllm.source_model import SourceModel
    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.events import Emit
    from lmi_build.spi import Job, Params
    from lmi_build.values.quant import QuantScheme

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
        Unsupported: TensorRT-LLM cannot compute it, or a number does not fit.
        StageFailed: Something was left unwritten.
    """
    # Heavy from here on: torch.
    from lmi_build.backends.trtllm.checkpoint_writer import num_sources, write_ranks

    folder, request = job.inputs["checkpoint"], _request(job.params)
    config = read_config(folder)
    with CheckpointReader(folder) as reader:
        scheme = _scheme(config)
        model, plans = _planned(reader, config, scheme, request)
        coded = _coder(reader, scheme, request)
        _check_dtypes(reader, unused(model), model.quantized)
        total = num_sources(plans)

        def on_source(done: int) -> None:
            event = StageProgress(
                stage=job.stage, done=done, total=total, unit="tensors"
            )
            emit(event)

        write_ranks(job.out, reader, plans, coded=coded, on_source=on_source)
        rows = shard_rows(reader.tensors.values(), plans, model.quantized)
    write_shard_ledger(job.out, rows)
    window = attention_window(model.architecture, model.geometry, config)
    if window is not None:
        _tell_window(job, emit, window)
    section = _section(scheme, plans, request)
    document = pretrained_config(
        model, config, request.version, request.mapping, section
    )
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    (job.out / CONFIG_NAME).write_text(text, "utf-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """The stage's parameters, typed."""

    version: str
    dtype: str
    mapping: Mapping2D
    algorithm: str
    group_size: int
    zero_points: bool
    compute_capability: str


def _request(params: Mapping[str, Any]) -> _Request:
    algorithm = params.get("algorithm") or {}
    return _Request(
        version=str(params["trtllm"]),
        dtype=str(params["dtype"]),
        mapping=Mapping2D(
            tp=int(params["tensor_parallel_size"]),
            pp=int(params["pipeline_parallel_size"]),
        ),
        algorithm=str(algorithm.get("quant_algo", "")),
        group_size=int(algorithm.get("group_size", 0)),
        zero_points=bool(algorithm.get("has_zero_point", False)),
        compute_capability=str(params.get("compute_capability", "")),
    )


def _scheme(config: Mapping[str, Any]) -> QuantScheme | None:
    """The source's format, or None where it is float."""
    from lmi_build.checkpoint.formats.config_reader import read_scheme

    quantization = config.get("quantization_config")
    return None if quantization is None else read_scheme(quantization)


def _planned(
    reader: CheckpointReader,
    config: Mapping[str, Any],
    scheme: QuantScheme | None,
    request: _Request,
) -> tuple[SourceModel, tuple[RankPlan, ...]]:
    """What every rank holds, after everything that can be refused was."""
    geometry = geometry_from_config(config)
    entries = reader.tensors
    shapes = {name: entry.shape for name, entry in entries.items()}
    quantized = coded_modules(shapes, scheme)
    if bool(quantized) != bool(request.algorithm):
        raise SourceInvalid(
            f"the weights hold {len(quantized)} quantized linears, the plan says"
            f" `{request.algorithm or 'float'}`",
            code="trtllm.other-algorithm",
            hints=("run `lmi-build plan` again; the model has changed since",),
        )
    for problem in checkpoint_problems(
        geometry,
        config,
        shapes,
        version=request.version,
        dtype=request.dtype,
        mapping=request.mapping,
        quantized=quantized,
        coding=_coding(request, quantized),
    ):
        raise _refused(problem)
    model = source_model(
        geometry,
        config,
        shapes,
        version=request.version,
        dtype=request.dtype,
        quantized=quantized,
    )
    return model, plan_checkpoint(model, request.mapping)


def _coding(request: _Request, quantized: frozenset[str]) -> Coding | None:
    """What the source's linears become; None where they are float."""
    if not request.algorithm:
        return None
    return Coding(
        algorithm=request.algorithm,
        group_size=request.group_size,
        version=request.version,
        modules=quantized,
        settled=True,
    )


def _coder(
    reader: CheckpointReader,
    scheme: QuantScheme | None,
    request: _Request,
) -> CodedLinears:
    """Who makes the tensors of coded linears."""
    from lmi_build.backends.trtllm.checkpoint_codes import CheckpointCodes
    from lmi_build.backends.trtllm.checkpoint_writer import NO_CODES

    if scheme is None or not request.algorithm:
        return NO_CODES
    return CheckpointCodes(
        reader=reader,
        scheme=scheme,
        algorithm=request.algorithm,
        dtype=request.dtype,
        group_size=request.group_size,
        zero_points=request.zero_points,
        as_float=float_weights(request.algorithm, request.compute_capability),
    )


def _section(
    scheme: QuantScheme | None, plans: Sequence[RankPlan], request: _Request
) -> dict[str, JSONValue]:
    """`quantization` of the checkpoint's config.json."""
    left = sorted({name for plan in plans for name in plan.float_linears})
    left = left if request.algorithm else []
    return quant_config(
        request.algorithm,
        trtllm=request.version,
        group_size=request.group_size or -1,
        zero_points=request.zero_points,
        kv_cache_dtype=scheme.kv_cache_dtype if scheme else "auto",
        float_modules=left,
    )


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


def _check_dtypes(
    reader: CheckpointReader, ignored: tuple[str, ...], quantized: frozenset[str]
) -> None:
    """Everything copied is float; codes are another matter."""
    for name, entry in reader.tensors.items():
        if name in ignored or name.rpartition(".")[0] in quantized:
            continue
        if entry.dtype not in FLOATS:
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
