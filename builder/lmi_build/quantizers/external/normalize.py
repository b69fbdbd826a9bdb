"""
A library's result, held against the recipe and written as our own would be.

Nothing is believed: every linear that should be quantized is read out of the
library's format, compared with its source weight and written anew in the planned
format, bit for bit or not at all; every other tensor is the source's own, and what the
library wrote under its name must equal it. Only a method that moves scales may change
a norm or a bias, and then the ledger says so. Configuration and tokenizer are the
source's, so that no release of transformers leaves its traces in them.

Shape suffixes: I input channels, O output channels.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from lmi_build.checkpoint.formats.codec import (
    Codes,
    NotRepresentable,
    decode,
    encode,
    weight_of,
)
from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.checkpoint.formats.layout import MARKS, PARTS
from lmi_build.checkpoint.ledger import LedgerResult, LedgerRow, smoothed
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.checkpoint.writer import tensor_plan
from lmi_build.errors import LmiBuildError, SourceInvalid, StageFailed
from lmi_build.quantizers.options import SMOOTHING
from lmi_build.values.quant import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from lmi_build.quantizers.state import BlockState
    from lmi_build.quantizers.targets import Linear
# A result this far from its source is no approximation: zeros are as near.
_MAX_ERROR = 1.0
# Sweeps of the fit of row and column scales: what is left of a scale of 10 on one row
# and one column is then below a thousandth of the weight's power.
_NUM_SWEEPS = 8
# What Model Optimizer's `FP8` is: a scale per matrix, a scale per tensor.
_MODELOPT_FP8 = QuantScheme(
    weight_bits=8,
    weight_dtype="float",
    group_size=-1,
    sym=True,
    activation_bits=8,
    packing="float-quantized",
    activation_dtype="float",
    activation_scheme="static",
    granularity="tensor",
)
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


def normalize(
    native: Path,
    source: CheckpointReader,
    linears: Sequence[Linear],
    state: BlockState,
    *,
    scheme: QuantScheme,
    method: str,
) -> None:
    """
    Read a library's folder into `state`, block by block.

    Args:
        native: What the library saved.
        source: The model that went in.
        linears: What should be quantized.
        state: Takes tensors and ledger rows; `assemble` makes the checkpoint of it.
        scheme: What the plan says the result is.
        method: Of the recipe; decides what may have changed.

    Raises:
        StageFailed: `provider.output`, naming the tensor.
    """
    refuse_foreign_files(native)
    stored = native_scheme(native)
    check_scheme(stored, scheme)
    with _open(native) as made:
        names = _accounted(made, source, linears, stored)
        for block in dict.fromkeys(x.block for x in linears):
            tensors: dict[str, Tensor] = {}
            rows: list[LedgerRow] = []
            for linear in (x for x in linears if x.block == block):
                own, row = _linear(made, source, linear, stored, scheme, method)
                tensors |= own
                rows.append(row)
            state.commit(tensors, tuple(rows), activations=None)
        tensors, rows = _others(made, source, names, method)
        state.commit(tensors, tuple(rows), activations=None)


def refuse_foreign_files(native: Path) -> None:
    """
    Refuse weights that only a program can open, and programs.

    Raises:
        StageFailed: `provider.output`.
    """
    wrong = {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".py", ".so"}
    for path in sorted(native.rglob("*")):
        if path.suffix in wrong:
            raise _wrong(f"`{path.name}` was written; weights must be safetensors")


def native_scheme(native: Path) -> QuantScheme:
    """
    What the library says it made.

    Raises:
        StageFailed: `provider.output`.
    """
    try:
        config: Any = json.loads((native / "config.json").read_bytes())
        entry = config["quantization_config"]
        return _MODELOPT_FP8 if _is_modelopt_fp8(entry) else read_scheme(entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _wrong(f"its config.json cannot be read: {error!r}") from error
    except LmiBuildError as error:
        raise _wrong(f"its config.json cannot be read: {error.message}") from error


def _is_modelopt_fp8(entry: Mapping[str, Any]) -> bool:
    """Model Optimizer has a configuration of its own over the tensors of FP8."""
    return (
        entry.get("quant_method") == "modelopt"
        and entry.get("quant_algo") == "FP8"
        and entry.get("kv_cache_quant_algo") is None
    )


def check_scheme(stored: QuantScheme, planned: QuantScheme) -> None:
    """
    Hold what a library says against what was asked for.

    Raises:
        StageFailed: `provider.output`, naming the first value that differs.
    """
    names = ["packing", "weight_bits", "weight_dtype", "group_size"]
    names += ["activation_bits", "activation_scheme", "activation_dtype"]
    if planned.packing != "awq":
        names.append("sym")
    if planned.weight_dtype == "float":
        names.append("granularity")
    for name in names:
        have, want = getattr(stored, name), getattr(planned, name)
        if have != want:
            raise _wrong(f"`{name}` is {have!r}, asked for was {want!r}")


def _open(native: Path) -> CheckpointReader:
    try:
        return CheckpointReader(native)
    except SourceInvalid as error:
        raise _wrong(f"its weights cannot be read: {error.message}") from error


def _accounted(
    made: CheckpointReader,
    source: CheckpointReader,
    linears: Sequence[Linear],
    stored: QuantScheme,
) -> tuple[str, ...]:
    """Names of all other tensors; every tensor is expected and every expected there."""
    mark, parts = MARKS[stored.packing], PARTS[stored.packing]
    own: set[str] = set()
    for x in linears:
        if f"{x.name}.{mark}" not in made:
            raise _wrong(f"`{x.name}` is not quantized")
        own |= {f"{x.name}.{part}" for part in parts}
    chosen = {f"{x.name}.weight" for x in linears}
    names = tuple(name for name in source.tensors if name not in chosen)
    for name in names:
        if name not in made:
            raise _wrong(f"`{name}` is missing")
    for name in made.tensors:
        if name in own or name in source:
            continue
        if name == _HEAD and _is_tied(made, source):
            continue
        raise _wrong(f"`{name}` was made of nothing")
    return names


def _is_tied(made: CheckpointReader, source: CheckpointReader) -> bool:
    """Whether a head that the source does not have is its embedding."""
    tables = [name for name in source.tensors if name.endswith(_EMBEDDING)]
    return len(tables) == 1 and torch.equal(made.read(_HEAD), source.read(tables[0]))


def _linear(
    made: CheckpointReader,
    source: CheckpointReader,
    linear: Linear,
    stored: QuantScheme,
    scheme: QuantScheme,
    method: str,
) -> tuple[dict[str, Tensor], LedgerRow]:
    """One linear in the planned format, with its ledger row."""
    name = linear.name
    parts = [f"{name}.{part}" for part in PARTS[stored.packing]]
    native = {part: made.read(part) for part in parts if part in made}
    entry = source.entry(f"{name}.weight")
    try:
        codes = decode(native, name, stored)
        input_scale = native.get(f"{name}.input_scale")
        tensors = encode(
            name,
            codes,
            slice(None),
            scheme,
            input_scale=input_scale,
            group_I=codes.group_I,
        )
    except (NotRepresentable, ValueError, RuntimeError) as error:
        raise _wrong(f"`{name}`: {error}") from error
    except SourceInvalid as error:
        raise _wrong(error.message) from error
    shape = (codes.code_IO.shape[1], codes.code_IO.shape[0])
    if shape != (linear.num_outputs, linear.num_inputs):
        raise _wrong(f"`{name}` is {list(shape)}, its source {list(entry.shape)}")
    gap = _weight_error(codes, source.read(entry.name), moves=method in SMOOTHING)
    if not gap < _MAX_ERROR:
        raise _wrong(
            f"`{name}` is no approximation of its source: relative squared error"
            f" {gap:.3g}"
        )
    results = tuple(_result(key, tensor) for key, tensor in tensors.items())
    row = LedgerRow(
        source=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        action="quantized",
        results=results,
        error=gap,
    )
    return tensors, row


def _result(name: str, tensor: Tensor) -> LedgerResult:
    plan = tensor_plan(name, tensor)
    return LedgerResult(name=name, dtype=plan.dtype, shape=plan.shape)


def _weight_error(codes: Codes, weight_OI: Tensor, *, moves: bool) -> float:
    """
    Relative squared error of the weights.

    Where a method moves scales, a weight has been multiplied by one number per row and
    one per column; they are fitted, so that only the rounding counts.
    """
    w_OI, q_OI = weight_OI.to(torch.float32), weight_of(codes)
    if moves:
        w_OI = _fit_scales(w_OI, q_OI)
    power = float(w_OI.square().sum())
    return float((q_OI - w_OI).square().sum()) / power if power > 0 else 0.0


def _fit_scales(w_OI: Tensor, q_OI: Tensor) -> Tensor:
    """The row and column scales of `w` that come nearest to `q`, by least squares."""
    w_OI = w_OI.clone()
    for _ in range(_NUM_SWEEPS):
        for dim in (0, 1):
            power = w_OI.square().sum(dim=dim, keepdim=True)
            scale = (w_OI * q_OI).sum(dim=dim, keepdim=True) / power.clamp_min(1e-30)
            w_OI *= scale
    return w_OI


def _others(
    made: CheckpointReader,
    source: CheckpointReader,
    names: Sequence[str],
    method: str,
) -> tuple[dict[str, Tensor], list[LedgerRow]]:
    """Tensors that changed and may; the rest must be what it was."""
    tensors: dict[str, Tensor] = {}
    rows: list[LedgerRow] = []
    for name in names:
        entry = source.entry(name)
        before, after = source.read(name), made.read(name)
        if before.shape != after.shape:
            raise _wrong(
                f"`{name}` is {list(after.shape)}, its source {list(before.shape)}"
            )
        if torch.equal(before.to(after.dtype), after):
            continue
        # Norms and biases are vectors; nothing else takes up a scale.
        if method not in SMOOTHING or before.ndim != 1:
            raise _wrong(f"`{name}` changed, though `{method}` leaves it alone")
        if not bool(torch.isfinite(after).all()):
            raise _wrong(f"`{name}` holds numbers that are not finite")
        tensors[name] = after.to(before.dtype)
        rows.append(smoothed(entry))
    return tensors, rows


def _wrong(message: str) -> StageFailed:
    return StageFailed(
        f"the result is not what was asked for: {message}",
        code="provider.output",
        hints=("use the provider `builtin`, and report it with the stage's log",),
    )
