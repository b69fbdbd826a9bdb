"""The `config.pbtxt` that Triton's TensorRT-LLM backend reads, written from data."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

from lmi_build.catalog.tables import read_row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "triton_config.toml"
CONFIG_NAME = "config.pbtxt"
SCHEDULERS = ("guaranteed_no_evict", "max_utilization")
# The only kind of batching that all versions have and that answers as it generates.
_MODEL_TYPE = "inflight_fused_batching"
# Up to here a decoupled model gets the scheduler that evicts nothing, whatever is
# written, unless prompts are computed in chunks (0.8 and later).
_FREE_SCHEDULER_SINCE = (0, 12)
_CHUNKED_SINCE = (0, 8)
_Row = TypeVar("_Row", bound="_Tensor | _Parameter")


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonModel:
    """
    What one model repository says to the backend.

    Args:
        model_path: Folder of the engine inside the container.
        max_batch_size: Requests scheduled together.
        max_beam_width: Beams of one request.
        kv_cache_fraction: Part of the free GPU memory for the key-value cache.
        scheduler: One of `SCHEDULERS`.
        kv_cache_reuse: Blocks of equal prompts are used again.
        chunked_context: Prompts are computed in pieces.
        encoder_path: Folder of the encoder's engine, where there is one; `model_path`
            is then the decoder's.
        attention_window: Tokens that a block attends to; 0 for all.
    """

    model_path: str
    max_batch_size: int
    max_beam_width: int = 1
    kv_cache_fraction: float = 0.9
    scheduler: str = "guaranteed_no_evict"
    kv_cache_reuse: bool = False
    chunked_context: bool = False
    encoder_path: str = ""
    attention_window: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tensor:
    name: str
    type: str
    dims: tuple[int, ...]
    scalar: bool = False
    ragged: bool = False
    optional: bool = False
    since: str = "0"
    until: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parameter:
    name: str
    since: str = "0"
    until: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tables:
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]
    parameters: tuple[_Parameter, ...]
    batching_since: str


def config_pbtxt(trtllm: str, model: TritonModel) -> str:
    """
    The text of `config.pbtxt` for one version of TensorRT-LLM.

    Args:
        trtllm: Such as `0.12.0`.
        model: What it says.

    Raises:
        ValueError: A value the backend of that version would refuse or overrule.
    """
    _check(trtllm, model)
    tables = _tables()
    batched = _present(tables.batching_since, "", trtllm)
    lines = [
        'name: "tensorrt_llm"',
        'backend: "tensorrtllm"',
        f"max_batch_size: {model.max_batch_size}",
        "model_transaction_policy { decoupled: true }",
        *([_batching(model.max_batch_size)] if batched else []),
        *(_tensor("input", row) for row in _of(tables.inputs, trtllm)),
        *(_tensor("output", row) for row in _of(tables.outputs, trtllm)),
        "instance_group { count: 1 kind: KIND_CPU }",
    ]
    values = _values(model)
    lines += [
        _parameter(row.name, values[row.name])
        for row in _of(tables.parameters, trtllm)
        if values[row.name]
    ]
    return "\n".join(lines) + "\n"


def scheduler_is_overruled(trtllm: str, scheduler: str, *, chunked: bool) -> bool:
    """
    Whether the backend takes another scheduler than `config.pbtxt` says.

    Args:
        trtllm: Version of TensorRT-LLM.
        scheduler: One of `SCHEDULERS`.
        chunked: Prompts are computed in pieces.

    Source: `model_instance_state.cc` of the backend at each version.
    """
    version = _version(trtllm)
    if scheduler == SCHEDULERS[0] or version >= _FREE_SCHEDULER_SINCE:
        return False
    return not chunked or version < _CHUNKED_SINCE


def _check(trtllm: str, model: TritonModel) -> None:
    if model.scheduler not in SCHEDULERS:
        raise ValueError(f"{model.scheduler!r} is no scheduler of the backend")
    if scheduler_is_overruled(trtllm, model.scheduler, chunked=model.chunked_context):
        raise ValueError(
            f"{model.scheduler} is overruled by the backend of {trtllm} when a model"
            " answers as it generates"
        )
    if not 0 < model.kv_cache_fraction < 1:
        raise ValueError(f"a fraction of {model.kv_cache_fraction} is refused")
    for path in (model.model_path, model.encoder_path):
        if any(char in path for char in '"\\\n$'):
            raise ValueError(f"the path {path!r} is refused")


def _values(model: TritonModel) -> dict[str, str]:
    return {
        "gpt_model_type": _MODEL_TYPE,
        "gpt_model_path": model.model_path,
        "encoder_model_path": model.encoder_path,
        "max_beam_width": str(model.max_beam_width),
        "max_attention_window_size": str(model.attention_window or ""),
        "batch_scheduler_policy": model.scheduler,
        "kv_cache_free_gpu_mem_fraction": str(model.kv_cache_fraction),
        "max_num_sequences": str(model.max_batch_size),
        # Unset means true up to 0.7, and it costs more than it gains.
        "enable_trt_overlap": "false",
        "enable_kv_cache_reuse": str(model.kv_cache_reuse).lower(),
        "enable_chunked_context": str(model.chunked_context).lower(),
    }


def _batching(size: int) -> str:
    return f"dynamic_batching {{ preferred_batch_size: [ {size} ] }}"


def _tensor(direction: str, row: _Tensor) -> str:
    parts = [
        f'name: "{row.name}"',
        f"data_type: TYPE_{row.type}",
        f"dims: [ {', '.join(str(size) for size in row.dims)} ]",
    ]
    if row.scalar:
        parts.append("reshape: { shape: [ ] }")
    if row.ragged:
        parts.append("allow_ragged_batch: true")
    if row.optional:
        parts.append("optional: true")
    return f"{direction} {{ {' '.join(parts)} }}"


def _parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}'


def _of(rows: Sequence[_Row], trtllm: str) -> Iterator[_Row]:
    return (row for row in rows if _present(row.since, row.until, trtllm))


def _present(since: str, until: str, trtllm: str) -> bool:
    version = _version(trtllm)
    return version >= _version(since) and (not until or version < _version(until))


def _version(text: str) -> tuple[int, ...]:
    """Major and minor: within them the backend's interface stays."""
    return tuple(int(part) for part in text.split(".")[:2])


@cache
def _tables() -> _Tables:
    text = files("lmi_build.backends.trtllm").joinpath(FILE).read_text("utf-8")
    document: dict[str, Any] = tomllib.loads(text)
    return _Tables(
        inputs=_rows(_Tensor, document["inputs"]),
        outputs=_rows(_Tensor, document["outputs"]),
        parameters=_rows(_Parameter, document["parameters"]),
        batching_since=document["batching"]["since"],
    )


def _rows(cls: type[_Row], tables: Sequence[dict[str, Any]]) -> tuple[_Row, ...]:
    return tuple(
        read_row(cls, table, where=f"{FILE}: {table.get('name')}") for table in tables
    )
