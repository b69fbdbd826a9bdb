"""
Writes a checkpoint as TensorRT-LLM's PyTorch backend reads it, in a worker process.

One linear is in memory at a time. The ledger comes along: its rows name the tensors
that a source tensor became here.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.hf_layout import (
    FP8,
    hf_plans,
    hf_tensors,
    joined_group,
    shape_problem,
)
from lmi_build.backends.trtllm.hf_quantized import FLOAT, hf_formats
from lmi_build.backends.trtllm.linear import Inexact
from lmi_build.checkpoint.formats.codec import decode
from lmi_build.checkpoint.formats.config import float_linears, read_scheme
from lmi_build.checkpoint.formats.headers import linears_in, mark_of, parts_of
from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS
from lmi_build.checkpoint.formats.modelopt import (
    HF_QUANT_CONFIG,
    METHOD,
    modelopt_documents,
    modelopt_entries,
)
from lmi_build.checkpoint.ledger import (
    LEDGER_NAME,
    LedgerResult,
    LedgerRow,
    read_ledger,
    write_ledger,
)
from lmi_build.checkpoint.reader import INDEX_NAME, CheckpointReader, byte_view
from lmi_build.checkpoint.writer import TensorPlan, write_checkpoint
from lmi_build.errors import SourceInvalid, StageFailed, Unsupported
from lmi_build.events import StageNote, StageProgress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from lmi_build.checkpoint.formats.headers import QuantizedLinear
    from lmi_build.events import Emit
    from lmi_build.spi import Job
    from lmi_build.values.quant import QuantScheme

QUANTIZATION = "quantization_config"
# They repeat `quantization_config` in another format's words.
_STALE = frozenset(
    {"quantize_config.json", "quant_config.json", HF_QUANT_CONFIG, LEDGER_NAME}
)
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


@dataclass(kw_only=True, slots=True)
class _Seen:
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
            _write_inline(job.out, entry)
        return
    scheme = read_scheme(entry)
    with CheckpointReader(source) as reader:
        target = _target(reader, scheme, algo, _dtype(config))
        seen = _write(reader, job, target, config, emit)
        left = _left(reader, target)
    _write_config(job.out, config, target, left)
    _write_ledger(source, job.out, target)
    _copy_rest(source, job.out)
    _tell(job, emit, target, seen, _dtype(config))


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
        raise _broken(str(error)) from error
    if not linears:
        raise _broken(f"there is no tensor `*.{mark_of(scheme)}`")
    names = {linear.name for linear in linears}
    every = names | {x.removesuffix(".weight") for x in shapes if x.endswith(".weight")}
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
    problem = shape_problem(linear.name, linear.num_outputs, linear.num_inputs, algo)
    if linear.name.rpartition(".")[2] == "lm_head":
        problem = f"`{linear.name}` is quantized; the backend reads a float head"
    group = joined_group(linear.name, every)
    if problem:
        raise _inexact(problem)
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
) -> _Seen:
    owner = {
        plan.name: name for name, plans in target.linears.items() for plan in plans
    }
    held: dict[str, dict[str, Tensor]] = {}
    done: set[str] = set()
    seen = _Seen()

    def data(name: str) -> Iterator[bytes | memoryview]:
        if name not in owner:
            yield from reader.stream(target.kept[name])
            return
        linear = owner[name]
        if linear not in held:
            held.clear()
            held[linear] = _convert(reader, linear, target)
            _observe(seen, linear, held[linear], target.algo, _dtype(config))
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


def _observe(
    seen: _Seen, name: str, tensors: Mapping[str, Tensor], algo: str, dtype: str
) -> None:
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


def _left(reader: CheckpointReader, target: _Target) -> tuple[str, ...]:
    kept = {
        new: (reader.entry(old).dtype, reader.entry(old).shape)
        for new, old in target.kept.items()
    }
    return float_linears(kept, target.linears)


def _write_config(
    out: Path, config: Mapping[str, Any], target: _Target, left: tuple[str, ...]
) -> None:
    document, inline = modelopt_documents(
        target.algo,
        left=left,
        group_size=target.scheme.group_size,
        kv_cache_dtype=target.scheme.kv_cache_dtype,
    )
    _write_json(out / "config.json", {**config, QUANTIZATION: inline})
    _write_json(out / HF_QUANT_CONFIG, document)


def _write_inline(out: Path, entry: Mapping[str, Any]) -> None:
    """The file that releases before 1.3 look for, from what `config.json` says."""
    entries = modelopt_entries(entry)
    names = ("quant_algo", "kv_cache_quant_algo", "group_size", "exclude_modules")
    quantization = {name: entries[name] for name in names if name in entries}
    document = {
        "producer": entry.get("producer") or {},
        "quant_method": METHOD,
        "quantization": quantization,
    }
    _write_json(out / HF_QUANT_CONFIG, document)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=2, sort_keys=True)
    path.write_text(text + "\n", "utf-8")


def _write_ledger(source: Path, out: Path, target: _Target) -> None:
    """Carry the ledger over, if there is one, and hold it to what was written."""
    if not (source / LEDGER_NAME).is_file():
        return
    try:
        rows = [_moved(row, target) for row in read_ledger(source)]
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(f"`{LEDGER_NAME}` cannot be read: {error}") from error
    told = [item.name for row in rows for item in row.results]
    written = {plan.name for plans in target.linears.values() for plan in plans}
    written |= set(target.kept)
    odd = sorted(written.symmetric_difference(told))
    if odd or len(told) != len(set(told)):
        raise StageFailed(
            f"the tensor ledger does not balance: `{(odd or sorted(told))[0]}`",
            code="checkpoint.ledger",
            hints=("this is a fault of lmi-build; please report it with the log",),
        )
    write_ledger(out, rows)


def _moved(row: LedgerRow, target: _Target) -> LedgerRow:
    name = (row.source or "").removesuffix(".weight")
    if row.action == "quantized" and name in target.linears:
        results = tuple(
            LedgerResult(name=plan.name, dtype=plan.dtype, shape=plan.shape)
            for plan in target.linears[name]
        )
        return replace(row, results=results)
    new = {old: name for name, old in target.kept.items()}
    results = tuple(replace(x, name=new.get(x.name, x.name)) for x in row.results)
    return replace(row, results=results)


def _copy_all(source: Path, out: Path, job: Job, emit: Emit) -> None:
    """A folder that the backend reads as it is."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    for done, path in enumerate(files, start=1):
        _copy(path, out / path.relative_to(source))
        emit(StageProgress(stage=job.stage, done=done, total=len(files), unit="files"))


def _copy_rest(source: Path, out: Path) -> None:
    """Tokenizer, licence and settings."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        skip = path.suffix == ".safetensors" or name.as_posix() in {*_STALE, INDEX_NAME}
        if path.is_file() and not skip and not (out / name).exists():
            _copy(path, out / name)


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def _tell(job: Job, emit: Emit, target: _Target, seen: _Seen, dtype: str) -> None:
    """Say where the loader computes otherwise than the folder means."""
    groups = {joined_group(name, target.linears) for name in seen.scales} - {()}
    apart = [
        group for group in groups if len({seen.scales[name] for name in group}) > 1
    ]
    if apart:
        ratio = max(
            max(scales) / min(scales)
            for scales in ([seen.scales[name] for name in group] for group in apart)
        )
        _note(
            job,
            emit,
            "compile.hf-rescaled",
            f"{len(apart)} of {len(groups)} joined layers (q, k, v or gate, up) have"
            f" different scales, up to {ratio:.3g} times apart: TensorRT-LLM rounds"
            " their fp8 weights again to the largest; `granularity: channel` with"
            " release 1.0 keeps them",
        )
    if seen.num_rounded:
        _note(
            job,
            emit,
            "compile.hf-scales",
            f"TensorRT-LLM keeps scales in the model's {dtype}: {seen.num_rounded} of"
            f" them change, by {seen.rounded:.2g} at most; `model.dtype: float16` keeps"
            " float16 scales exact",
        )
    scheme = target.scheme
    if target.algo == FP8 and scheme.activation_scheme == "dynamic":
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


def _note(job: Job, emit: Emit, code: str, message: str) -> None:
    emit(StageNote(stage=job.stage, level="warning", code=code, message=message))


def _inexact(message: str) -> Unsupported:
    return Unsupported(
        f"the checkpoint cannot be laid out for TensorRT-LLM exactly: {message}",
        code="compile.hf-inexact",
        hints=(
            "quantize the float model with `sym: true` and a group_size of 64 or 128",
            "`method: fp8` has no groups and no zero points",
        ),
    )


def _broken(message: str) -> SourceInvalid:
    return SourceInvalid(
        message,
        code="checkpoint.format",
        hints=("run `lmi-build cache verify`, then build again",),
    )
