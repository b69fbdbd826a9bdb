"""
A quantized checkpoint in another format, with every code and scale as it was.

Two passes, one linear in memory at a time. The first finds out what the target must be
able to say (`exactness`), and whatever it cannot say exactly is refused before a byte
is written. The second writes into a folder beside the target, which takes the target's
name when it is whole.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.formats.config import float_linears, quantization_config
from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.checkpoint.formats.exactness import (
    ConvertedLinear,
    decode_linear,
    lossy,
    survey,
    target_scheme,
)
from lmi_build.checkpoint.formats.layout import (
    FORMATS,
    PARTS,
    linear_plans,
    width_problem,
)
from lmi_build.checkpoint.formats.modelopt import HF_QUANT_CONFIG
from lmi_build.checkpoint.ledger import (
    LEDGER_NAME,
    LedgerResult,
    LedgerRow,
    read_ledger,
    write_ledger,
)
from lmi_build.checkpoint.reader import INDEX_NAME, CheckpointReader, byte_view
from lmi_build.checkpoint.writer import TensorPlan, write_checkpoint
from lmi_build.errors import (
    SourceInvalid,
    StageFailed,
    ToolMissing,
    UsageInvalid,
)
from lmi_build.events import StageProgress, ignore
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from lmi_build.events import Emit
    from lmi_build.values.quant import QuantScheme

STAGE = "convert"
_FOLDER_MODE = 0o755
# They repeat `quantization_config` in a format's own words; a copy would be wrong.
_STALE = frozenset(
    {"quantize_config.json", "quant_config.json", HF_QUANT_CONFIG, LEDGER_NAME}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """
    What a conversion did.

    Args:
        source: The scheme that was read.
        target: The scheme that was written.
        num_linears: Layers written anew.
        num_copied: Tensors that passed through.
    """

    source: QuantScheme
    target: QuantScheme
    num_linears: int
    num_copied: int


def convert(source: Path, out: Path, *, to: str, emit: Emit = ignore) -> Converted:
    """
    Write a quantized checkpoint in another format.

    Args:
        source: A Hugging Face folder in a format that `read_scheme` knows.
        out: Folder to make; it may exist if it is empty.
        to: One of `layout.FORMATS`.
        emit: Told of every finished layer of both passes.

    Returns:
        What was read and written.

    Raises:
        Unsupported: `convert.lossy`, `convert.same` or `checkpoint.scheme`.
        SourceInvalid: The checkpoint is broken or is not quantized.
        UsageInvalid: `convert.output` or `convert.format`.
        ToolMissing: `convert.torch`.
    """
    _check_usage(source, out, to)
    config = _read_config(source)
    scheme = read_scheme(config["quantization_config"])
    with CheckpointReader(source) as reader:
        found = survey(reader, scheme, partial(_tell, emit, "checked"))
        target = target_scheme(scheme, found, to)
        for linear in found.linears:
            problem = width_problem(linear, target)
            if problem is not None:
                raise lossy(problem)
        kept = _kept(reader, found.linears, scheme)
        with _folder(out) as folder:
            _write(reader, folder, found.linears, kept, scheme, target, emit)
            _write_config(folder, config, found.linears, kept, target)
            _write_ledger(source, folder, found.linears, target)
            _copy_files(source, folder)
    return Converted(
        source=scheme,
        target=target,
        num_linears=len(found.linears),
        num_copied=len(kept),
    )


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when all went well, and vanishes otherwise."""
    unfinished = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        unfinished.chmod(_FOLDER_MODE)
        yield unfinished
        unfinished.replace(out)
    except OSError as error:
        raise StageFailed(
            f"writing `{out}` failed: {error.strerror or error}",
            code="convert.write",
            hints=("free room on the disk, or name another place with `--out`",),
        ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def _check_usage(source: Path, out: Path, to: str) -> None:
    if to not in FORMATS:
        raise UsageInvalid(
            f"no format `{to}`",
            code="convert.format",
            hints=(f"use {join_words(FORMATS)}",),
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageInvalid(
            f"`{out}` exists and is not an empty folder",
            code="convert.output",
            hints=("name a folder that does not exist yet",),
        )
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageInvalid(
            f"`{out}` lies inside the checkpoint `{source}`",
            code="convert.output",
            hints=("name a folder outside of it",),
        )
    if importlib.util.find_spec("torch") is None:
        raise ToolMissing(
            "converting a checkpoint needs `torch`, which is not installed",
            code="convert.torch",
            hints=("pip install 'lmi-build[quantize]'",),
        )


def _read_config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SourceInvalid(
            f"`{path}` cannot be read: {error}",
            code="convert.config",
            hints=("point at a Hugging Face folder with a config.json",),
        ) from error
    if not isinstance(config, dict) or not isinstance(
        config.get("quantization_config"), dict
    ):
        raise SourceInvalid(
            f"`{path}` has no `quantization_config`: the model is not quantized",
            code="convert.config",
            hints=("quantize it first, by a recipe with `quantize.method`",),
        )
    return config


def _tell(emit: Emit, what: str, done: int, total: int) -> None:
    emit(StageProgress(stage=STAGE, done=done, total=total, unit=f"layers {what}"))


def _kept(
    reader: CheckpointReader,
    linears: tuple[ConvertedLinear, ...],
    scheme: QuantScheme,
) -> dict[str, TensorPlan]:
    """Every tensor that no layer is read from."""
    taken = {f"{x.name}.{part}" for x in linears for part in PARTS[scheme.packing]}
    return {
        name: TensorPlan(name=name, dtype=entry.dtype, shape=entry.shape)
        for name, entry in reader.tensors.items()
        if name not in taken
    }


def _write(
    reader: CheckpointReader,
    out: Path,
    linears: tuple[ConvertedLinear, ...],
    kept: Mapping[str, TensorPlan],
    scheme: QuantScheme,
    target: QuantScheme,
    emit: Emit,
) -> None:
    from lmi_build.checkpoint.formats.codec import NotRepresentable, encode

    owner = {
        plan.name: linear.name
        for linear in linears
        for plan in linear_plans(linear, target)
    }
    held: dict[str, dict[str, Tensor]] = {}
    seen: set[str] = set()

    def data(name: str) -> Iterator[bytes | memoryview]:
        if name not in owner:
            yield from reader.stream(name)
            return
        linear = owner[name]
        if linear not in held:
            held.clear()
            codes = decode_linear(reader, linear, scheme)
            try:
                held[linear] = encode(
                    linear, codes, slice(None), target, group_I=codes.group_I
                )
            except NotRepresentable as error:
                raise lossy(str(error)) from error
            seen.add(linear)
            _tell(emit, "written", len(seen), len(linears))
        yield byte_view(held[linear][name])

    plans = [plan for linear in linears for plan in linear_plans(linear, target)]
    write_checkpoint(out, [*plans, *kept.values()], data)


def _write_config(
    out: Path,
    config: dict[str, Any],
    linears: tuple[ConvertedLinear, ...],
    kept: Mapping[str, TensorPlan],
    target: QuantScheme,
) -> None:
    old = config["quantization_config"]
    meta = old.get("meta") if isinstance(old.get("meta"), dict) else {}
    names = [linear.name for linear in linears]
    shapes = {name: (plan.dtype, plan.shape) for name, plan in kept.items()}
    new = quantization_config(
        target,
        left=float_linears(shapes, names),
        linears=names,
        method=str(meta.get("method") or old["quant_method"]),
        options=old if old["quant_method"] == "gptq" else {},
    )
    text = json.dumps({**config, "quantization_config": new}, indent=2, sort_keys=True)
    (out / "config.json").write_text(text + "\n", "utf-8")


def _write_ledger(
    source: Path,
    out: Path,
    linears: tuple[ConvertedLinear, ...],
    target: QuantScheme,
) -> None:
    """Carry the ledger over, if there is one; its rows name the new tensors."""
    if not (source / LEDGER_NAME).is_file():
        return
    try:
        rows = read_ledger(source)
    except (ValueError, KeyError, TypeError) as error:
        raise SourceInvalid(
            f"`{source / LEDGER_NAME}` cannot be read: {error}",
            code="convert.ledger",
            hints=("remove the file, or fetch the checkpoint again",),
        ) from error
    by_name = {linear.name: linear for linear in linears}

    def moved(row: LedgerRow) -> LedgerRow:
        if row.action != "quantized" or row.module not in by_name:
            return row
        codes = (
            LedgerResult(name=plan.name, dtype=plan.dtype, shape=plan.shape)
            for plan in linear_plans(by_name[row.module], target)
        )
        return replace(row, results=(*row.kept, *codes))

    write_ledger(out, [moved(row) for row in rows])


def _copy_files(source: Path, out: Path) -> None:
    """Carry over everything but weights and what describes them."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if not path.is_file() or path.suffix == ".safetensors":
            continue
        if name.as_posix() in {*_STALE, INDEX_NAME} or (out / name).exists():
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
