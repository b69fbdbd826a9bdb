"""
The tensor ledger: one row per source tensor, so that nothing is lost or made up.

`check_total` holds rows, source and result together: every source tensor has exactly
one row, every row's results exist exactly once with the dtype and shape it says, and
no result is without a row.
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
        source: Its name.
        dtype: Its dtype.
        shape: Its shape.
        action: `copied` or `quantized`.
        results: What was made of it.
        error: Relative squared error of the layer's output where it was calibrated,
            of the weights where it was not; None for a copy.
    """

    source: str
    dtype: str
    shape: tuple[int, ...]
    action: str
    results: tuple[LedgerResult, ...]
    error: float | None = None


def copied(entry: TensorEntry) -> LedgerRow:
    """The row of a tensor that passes through unchanged."""
    same = LedgerResult(name=entry.name, dtype=entry.dtype, shape=entry.shape)
    return LedgerRow(
        source=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        action="copied",
        results=(same,),
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
    made: set[str] = set()
    for row in rows:
        entry = source.get(row.source)
        if entry is None or row.source in seen:
            raise _unbalanced(row.source, "unknown" if entry is None else "used twice")
        if (entry.dtype, entry.shape) != (row.dtype, row.shape):
            raise _unbalanced(row.source, "recorded with another dtype or shape")
        seen.add(row.source)
        for item in row.results:
            out = result.get(item.name)
            if out is None or item.name in made:
                raise _unbalanced(item.name, "missing" if out is None else "made twice")
            if (out.dtype, out.shape) != (item.dtype, item.shape):
                raise _unbalanced(item.name, "written with another dtype or shape")
            made.add(item.name)
    for name in sorted(set(source) - seen):
        raise _unbalanced(name, "lost")
    for name in sorted(set(result) - made):
        raise _unbalanced(name, "made of nothing")


def _unbalanced(name: str, fault: str) -> StageFailed:
    return StageFailed(
        f"the tensor ledger does not balance: `{name}` is {fault}",
        code="checkpoint.ledger",
        hints=("this is a fault of lmi-build; please report it with the stage's log",),
    )


def write_ledger(folder: Path, rows: Sequence[LedgerRow]) -> None:
    """Write `ledger.json`, one row per line, sorted by source tensor."""
    lines = [
        json.dumps(asdict(row), sort_keys=True, separators=(",", ":"))
        for row in sorted(rows, key=lambda row: row.source)
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
    if document.get("schema") != LEDGER_SCHEMA:
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
