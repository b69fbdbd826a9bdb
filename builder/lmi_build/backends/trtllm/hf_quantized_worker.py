"""
Writes a checkpoint as TensorRT-LLM's PyTorch backend reads it, in a worker process.

One linear is in memory at a time. The ledger comes along: its rows name the tensors
that a source tensor became here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.hf_checks import joined_group, linear_faults
from lmi_build.backends.trtllm.hf_documents import (
    QUANTIZATION,
    broken,
    carry_ledger,
    copy_file,
    copy_rest,
    write_config,
    write_inline,
)
from lmi_build.backends.trtllm.hf_layout import (
    hf_plans,
    hf_tensors,
)
from lmi_build.backends.trtllm.hf_losses import Losses, observe, tell_losses
from lmi_build.backends.trtllm.hf_quantized import FLOAT
from lmi_build.backends.trtllm.linear import Inexact
from lmi_build.checkpoint.formats.codec import decode
from lmi_build.checkpoint.formats.config import float_linears
from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.checkpoint.formats.headers import linears_in, mark_of, parts_of
from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS
from lmi_build.checkpoint.formats.modelopt import HF_QUANT_CONFIG, METHOD
from lmi_build.checkpoint.reader import CheckpointReader, byte_view
from lmi_build.checkpoint.writer import TensorPlan, write_checkpoint
from lmi_build.errors import SourceInvalid, Unsupported
from lmi_build.events import StageProgress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from lmi_build.checkpoint.formats.headers import QuantizedLinear
    from lmi_build.events import Emit
    from lmi_build.spi import Job
    from lmi_build.values.quant import QuantScheme

_DTYPES = ("float16", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """
    What is written.

    Args:
        algo: Its `quant_algo`.
        scheme: What is read.
        linears: Module name to its plans.
        kept: Tensors that pass through: new name to old.
    """

    algo: str
    scheme: QuantScheme
    linears: Mapping[str, tuple[TensorPlan, ...]]
    kept: Mapping[str, str]


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out` with a folder for `option.backend=pytorch`.

    Raises:
        SourceInvalid: The checkpoint is broken (`checkpoint.*`).
        Unsupported: `compile.hf-inexact`: its numbers have no place in this form.
    """
    source = job.inputs["checkpoint"]
    algo = str(job.params["quant_algo"])
    config = _read_config(source)
    entry: dict[str, Any] = config.get(QUANTIZATION) or {}
    modelopt = entry.get("quant_method") == METHOD
    if algo == FLOAT or modelopt or (source / HF_QUANT_CONFIG).is_file():
        _copy_all(source, job.out, job, emit)
        if modelopt and not (job.out / HF_QUANT_CONFIG).exists():
            write_inline(job.out, entry)
        return
    scheme = read_scheme(entry)
    with CheckpointReader(source) as reader:
        target = _target(reader, scheme, algo, _dtype(config))
        seen = _write(reader, job, target, config, emit)
        left = _left(reader, target)
    write_config(job.out, config, algo, scheme, left=left)
    carry_ledger(source, job.out, target.linears, target.kept)
    copy_rest(source, job.out)
    tell_losses(
        job,
        emit,
        seen,
        linears=target.linears,
        scheme=scheme,
        algo=algo,
        dtype=_dtype(config),
    )


def _read_config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceInvalid(
            f"the checkpoint's config.json cannot be read: {error}",
            code="checkpoint.format",
            hints=("run `lmi-build cache verify`, then build again",),
        ) from error
    return config if isinstance(config, dict) else {}


def _dtype(config: Mapping[str, Any]) -> str:
    """What the backend computes in; it takes bfloat16 where nothing is said."""
    found = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    found = found.removeprefix("torch.")
    return found if found in _DTYPES else "bfloat16"


def _target(
    reader: CheckpointReader, scheme: QuantScheme, algo: str, dtype: str
) -> _Target:
    entries = reader.tensors
    shapes = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
    try:
        linears = linears_in(shapes, scheme)
    except ValueError as error:
        raise broken(str(error)) from error
    if not linears:
        raise broken(f"there is no tensor `*.{mark_of(scheme)}`")
    names = {linear.name for linear in linears}
    every = names | {x.removesuffix(".weight") for x in shapes if x.endswith(".weight")}
    sizes = {x.name: (x.num_outputs, x.num_inputs) for x in linears}
    for fault in linear_faults(sizes, every, algo):
        raise _inexact(fault.message)
    packed = {f"{name}.{part}" for name in names for part in parts_of(scheme)}
    return _Target(
        algo=algo,
        scheme=scheme,
        linears={x.name: _plans(x, scheme, algo, every, dtype) for x in linears},
        kept={_new_name(name, every): name for name in shapes if name not in packed},
    )


def _plans(
    linear: QuantizedLinear, scheme: QuantScheme, algo: str, every: set[str], dtype: str
) -> tuple[TensorPlan, ...]:
    group = joined_group(linear.name, every)
    return hf_plans(
        linear.name,
        (linear.num_outputs, linear.num_inputs),
        algo,
        group_size=scheme.group_size,
        static=scheme.activation_scheme == "static",
        alone=not group,
        dtype=dtype,
    )


def _new_name(name: str, every: set[str]) -> str:
    """Cache scales stand beside the projections there, all else where it was."""
    module, _, part = name.rpartition(".")
    projection = f"{module}.{part[:1]}_proj"
    if part not in KV_CACHE_PARTS or projection not in every:
        return name
    return f"{projection}.{part}"


def _write(
    reader: CheckpointReader,
    job: Job,
    target: _Target,
    config: Mapping[str, Any],
    emit: Emit,
) -> Losses:
    owner = {
        plan.name: name for name, plans in target.linears.items() for plan in plans
    }
    held: dict[str, dict[str, Tensor]] = {}
    done: set[str] = set()
    seen = Losses()

    def data(name: str) -> Iterator[bytes | memoryview]:
        if name not in owner:
            yield from reader.stream(target.kept[name])
            return
        linear = owner[name]
        if linear not in held:
            held.clear()
            held[linear] = _convert(reader, linear, target)
            observe(seen, linear, held[linear], target.algo, _dtype(config))
            done.add(linear)
            emit(
                StageProgress(
                    stage=job.stage,
                    done=len(done),
                    total=len(target.linears),
                    unit="layers",
                )
            )
        yield byte_view(held[linear][name])

    plans = [plan for plans in target.linears.values() for plan in plans]
    for new, old in target.kept.items():
        entry = reader.entry(old)
        plans.append(TensorPlan(name=new, dtype=entry.dtype, shape=entry.shape))
    write_checkpoint(job.out, plans, data)
    return seen


def _convert(reader: CheckpointReader, name: str, target: _Target) -> dict[str, Tensor]:
    scheme = target.scheme
    found = {
        full: reader.read(full)
        for part in parts_of(scheme)
        if (full := f"{name}.{part}") in reader
    }
    codes = decode(found, name, scheme)
    try:
        return hf_tensors(
            name,
            codes,
            target.algo,
            target.linears[name],
            input_scale=found.get(f"{name}.input_scale"),
        )
    except Inexact as error:
        raise _inexact(f"`{name}`: {error}") from error


def _left(reader: CheckpointReader, target: _Target) -> tuple[str, ...]:
    kept = {
        new: (reader.entry(old).dtype, reader.entry(old).shape)
        for new, old in target.kept.items()
    }
    return float_linears(kept, target.linears)


def _copy_all(source: Path, out: Path, job: Job, emit: Emit) -> None:
    """A folder that the backend reads as it is."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    for done, path in enumerate(files, start=1):
        copy_file(path, out / path.relative_to(source))
        emit(StageProgress(stage=job.stage, done=done, total=len(files), unit="files"))


def _inexact(message: str) -> Unsupported:
    return Unsupported(
        f"the checkpoint cannot be laid out for TensorRT-LLM exactly: {message}",
        code="compile.hf-inexact",
        hints=(
            "quantize the float model with `sym: true` and a group_size of 64 or 128",
            "`method: fp8` has no groups and no zero points",
        ),
    )
