"""What stands beside the tensors of a folder for the PyTorch backend."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
from lmi_build.checkpoint.reader import INDEX_NAME
from lmi_build.errors import SourceInvalid, StageFailed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.checkpoint.writer import TensorPlan
    from lmi_build.values.quant import QuantScheme

QUANTIZATION = "quantization_config"
# They repeat `quantization_config` in another format's words.
_STALE = frozenset(
    {"quantize_config.json", "quant_config.json", HF_QUANT_CONFIG, LEDGER_NAME}
)


def write_config(
    out: Path,
    config: Mapping[str, Any],
    algo: str,
    scheme: QuantScheme,
    *,
    left: tuple[str, ...],
) -> None:
    """
    `config.json` and `hf_quant_config.json`, which say the same.

    Args:
        out: The folder.
        config: The source's `config.json`.
        algo: `quant_algo` of the folder.
        scheme: Of the source.
        left: Linears that stay in float.
    """
    document, inline = modelopt_documents(
        algo,
        left=left,
        group_size=scheme.group_size,
        kv_cache_dtype=scheme.kv_cache_dtype,
    )
    _write_json(out / "config.json", {**config, QUANTIZATION: inline})
    _write_json(out / HF_QUANT_CONFIG, document)


def write_inline(out: Path, entry: Mapping[str, Any]) -> None:
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


def carry_ledger(
    source: Path,
    out: Path,
    linears: Mapping[str, tuple[TensorPlan, ...]],
    kept: Mapping[str, str],
) -> None:
    """Carry the ledger over, if there is one, and hold it to what was written."""
    if not (source / LEDGER_NAME).is_file():
        return
    try:
        rows = [_moved(row, linears, kept) for row in read_ledger(source)]
    except (ValueError, KeyError, TypeError) as error:
        raise broken(f"`{LEDGER_NAME}` cannot be read: {error}") from error
    told = [item.name for row in rows for item in row.results]
    written = {plan.name for plans in linears.values() for plan in plans}
    written |= set(kept)
    odd = sorted(written.symmetric_difference(told))
    if odd or len(told) != len(set(told)):
        raise StageFailed(
            f"the tensor ledger does not balance: `{(odd or sorted(told))[0]}`",
            code="checkpoint.ledger",
            hints=("this is a fault of lmi-build; please report it with the log",),
        )
    write_ledger(out, rows)


def _moved(
    row: LedgerRow,
    linears: Mapping[str, tuple[TensorPlan, ...]],
    kept: Mapping[str, str],
) -> LedgerRow:
    name = (row.source or "").removesuffix(".weight")
    if row.action == "quantized" and name in linears:
        results = tuple(
            LedgerResult(name=plan.name, dtype=plan.dtype, shape=plan.shape)
            for plan in linears[name]
        )
        return replace(row, results=results)
    new = {old: name for name, old in kept.items()}
    results = tuple(replace(x, name=new.get(x.name, x.name)) for x in row.results)
    return replace(row, results=results)


def copy_rest(source: Path, out: Path) -> None:
    """Tokenizer, licence and settings."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        skip = path.suffix == ".safetensors" or name.as_posix() in {*_STALE, INDEX_NAME}
        if path.is_file() and not skip and not (out / name).exists():
            copy_file(path, out / name)


def copy_file(path: Path, to: Path) -> None:
    """One file, into a folder that need not exist yet."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def broken(message: str) -> SourceInvalid:
    """A checkpoint that is not what its format says."""
    return SourceInvalid(
        message,
        code="checkpoint.format",
        hints=("run `lmi-build cache verify`, then build again",),
    )
