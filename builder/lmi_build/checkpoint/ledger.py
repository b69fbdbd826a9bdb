"""
The tensor ledger: one row per source tensor, so that nothing is lost or made up.

`check_total` holds rows, source and result together: every source tensor has exactly
one row, every row's results exist exactly once with the dtype and shape it says, and
no result is without a row. What a row may say is fixed by its action:

- `copied`: the tensor itself, the same name, dtype and shape.
- `smoothed`: a float tensor that absorbed the scale of a neighbour (a norm before
  scaled linears); its numbers changed, its name, dtype and shape did not.
- `quantized`: a weight that became codes and scales; an `input_scale` of static
  activations belongs to this row. A table that a quantized head shares is there as it
  was, too, before the head's codes.
- `made`: measured, not made of a tensor; it has no source. Only the scales of the
  key-value cache may be made (`MADE_PARTS`), one float32 number each, beside an
  attention module that the source has. So a row without a source cannot hide anything.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.errors import StageFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lmi_build.checkpoint.header import TensorEntry

LEDGER_NAME = "ledger.json"
LEDGER_SCHEMA = "lmi-build/ledger/v1"
# Last part of a name that may stand in a row without a source.
MADE_PARTS = frozenset({"k_scale", "v_scale"})
_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerResult:
    """
    One tensor of the result.

    Args:
        name: Its name.
        dtype: As `values.model.DTYPE_BITS` spells it.
        shape: Row-major.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerRow:
    """
    What became of one source tensor.

    Args:
        source: Its name; None for what was `made`.
        dtype: Its dtype; the result's where there is no source.
        shape: Its shape; the result's where there is no source.
        action: `copied`, `smoothed`, `quantized` or `made`.
        results: What was made of it.
        error: Relative squared error of the layer's output where it was calibrated,
            of the weights where it was not; None for all but `quantized`.
        tokens: Calibration tokens that reached the layer; None where none were used.
    """

    source: str | None
    dtype: str
    shape: tuple[int, ...]
    action: str
    results: tuple[LedgerResult, ...]
    error: float | None = None
    tokens: int | None = None

    @property
    def kept(self) -> tuple[LedgerResult, ...]:
        """The tensor itself, if it is still there; else nothing."""
        same = LedgerResult(name=self.source or "", dtype=self.dtype, shape=self.shape)
        return tuple(item for item in self.results if item == same)

    @property
    def made(self) -> tuple[LedgerResult, ...]:
        """What else became of it."""
        return tuple(item for item in self.results if item not in self.kept)

    @property
    def module(self) -> str:
        """
        The linear that was quantized, without `.weight`.

        The one of the source's name, or the head that shares the source.
        """
        if self.action == "quantized" and self.kept:
            return self.made[0].name.rpartition(".")[0]
        return (self.source or "").removesuffix(".weight")


def copied(entry: TensorEntry) -> LedgerRow:
    """The row of a tensor that passes through unchanged."""
    return _kept(entry, "copied")


def smoothed(entry: TensorEntry) -> LedgerRow:
    """The row of a float tensor that absorbed a scale: only its numbers changed."""
    return _kept(entry, "smoothed")


def _kept(entry: TensorEntry, action: str) -> LedgerRow:
    same = LedgerResult(name=entry.name, dtype=entry.dtype, shape=entry.shape)
    return LedgerRow(
        source=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        action=action,
        results=(same,),
    )


def made(name: str) -> LedgerRow:
    """
    The row of a key-value cache scale, which no tensor of the source became.

    Args:
        name: Such as `model.layers.0.self_attn.k_scale`.
    """
    result = LedgerResult(name=name, dtype="float32", shape=(1,))
    return LedgerRow(
        source=None, dtype="float32", shape=(1,), action="made", results=(result,)
    )


def check_total(
    rows: Iterable[LedgerRow],
    source: Mapping[str, TensorEntry],
    result: Mapping[str, TensorEntry],
) -> None:
    """
    Prove that rows, source and result fit together.

    Args:
        rows: The ledger.
        source: Every tensor of the model that went in.
        result: Every tensor of the checkpoint that came out.

    Raises:
        StageFailed: `checkpoint.ledger`, naming the first tensor that does not fit.
    """
    seen: set[str] = set()
    written: set[str] = set()
    for row in rows:
        _check_source(row, source, seen)
        fault = _action_fault(row, source)
        if fault is not None:
            raise _unbalanced(_name(row), fault)
        for item in row.results:
            out = result.get(item.name)
            if out is None or item.name in written:
                fault = "missing" if out is None else "made twice"
                raise _unbalanced(item.name, fault)
            if (out.dtype, out.shape) != (item.dtype, item.shape):
                raise _unbalanced(item.name, "written with another dtype or shape")
            written.add(item.name)
    for name in sorted(set(source) - seen):
        raise _unbalanced(name, "lost")
    for name in sorted(set(result) - written):
        raise _unbalanced(name, "made of nothing")


def _name(row: LedgerRow) -> str:
    return row.source or (row.results[0].name if row.results else "a row without names")


def _check_source(
    row: LedgerRow, source: Mapping[str, TensorEntry], seen: set[str]
) -> None:
    """Every row but a `made` one is about a tensor that no other row is about."""
    if row.source is None:
        return
    entry = source.get(row.source)
    if entry is None or row.source in seen:
        raise _unbalanced(row.source, "unknown" if entry is None else "used twice")
    if (entry.dtype, entry.shape) != (row.dtype, row.shape):
        raise _unbalanced(row.source, "recorded with another dtype or shape")
    seen.add(row.source)


def _action_fault(row: LedgerRow, source: Mapping[str, TensorEntry]) -> str | None:
    """Why a row's results are not what its action may give, or None."""
    if row.action == "made":
        return _made_fault(row, source)
    if row.source is None:
        return f"{row.action} from nothing"
    if row.action == "quantized":
        return None if row.results else "quantized to nothing"
    if row.action not in {"copied", "smoothed"}:
        return f"recorded as `{row.action}`, which is no action"
    same = LedgerResult(name=row.source, dtype=row.dtype, shape=row.shape)
    if row.results != (same,):
        return f"{row.action}, yet its name, dtype or shape changed"
    if row.action == "smoothed" and row.dtype not in _FLOATS:
        return f"smoothed, yet it holds {row.dtype}"
    return None


def _made_fault(row: LedgerRow, source: Mapping[str, TensorEntry]) -> str | None:
    if row.source is not None or len(row.results) != 1:
        return "made from a source, or not exactly one"
    item = row.results[0]
    module, _, part = item.name.rpartition(".")
    if part not in MADE_PARTS or (item.dtype, item.shape) != ("float32", (1,)):
        return "made of nothing"
    if item.name in source or not any(name.startswith(f"{module}.") for name in source):
        return "made beside a module that the source does not have"
    return None


def _unbalanced(name: str, fault: str) -> StageFailed:
    return StageFailed(
        f"the tensor ledger does not balance: `{name}` is {fault}",
        code="checkpoint.ledger",
        hints=("this is a fault of lmi-build; please report it with the stage's log",),
    )


def write_ledger(folder: Path, rows: Sequence[LedgerRow]) -> None:
    """Write `ledger.json`, one row per line, sorted by source or name."""
    lines = [
        json.dumps(asdict(row), sort_keys=True, separators=(",", ":"))
        for row in sorted(rows, key=_name)
    ]
    text = f'{{"schema":"{LEDGER_SCHEMA}","tensors":[\n' + ",\n".join(lines) + "\n]}\n"
    (folder / LEDGER_NAME).write_text(text, "utf-8")


def read_ledger(folder: Path) -> tuple[LedgerRow, ...]:
    """
    Read what `write_ledger` wrote.

    Raises:
        ValueError: The file is not a ledger of this schema.
    """
    document = json.loads((folder / LEDGER_NAME).read_text("utf-8"))
    if not isinstance(document, dict) or document.get("schema") != LEDGER_SCHEMA:
        msg = f"{folder / LEDGER_NAME} is not a {LEDGER_SCHEMA}"
        raise ValueError(msg)
    return tuple(row_from_json(row) for row in document["tensors"])


def row_from_json(row: dict[str, Any]) -> LedgerRow:
    """Undo `dataclasses.asdict` and JSON."""
    results = tuple(
        LedgerResult(name=item["name"], dtype=item["dtype"], shape=tuple(item["shape"]))
        for item in row["results"]
    )
    rest = {k: v for k, v in row.items() if k not in {"results", "shape"}}
    return LedgerRow(**rest, shape=tuple(row["shape"]), results=results)
