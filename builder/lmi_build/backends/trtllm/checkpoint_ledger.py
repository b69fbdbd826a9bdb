"""
What became of every source tensor of a TensorRT-LLM checkpoint.

The ledger of a quantized model has one row per tensor with its results; here one
tensor goes to many ranks, in parts. So a row names the ranks and what their tensors
are called, and tensors that nothing reads are listed as well: nothing is lost in
silence.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from lmi_build.backends.trtllm.checkpoint_plan import RankPlan
    from lmi_build.checkpoint.header import TensorEntry

LEDGER_NAME = "trtllm_ledger.json"
LEDGER_SCHEMA = "lmi-build/trtllm-ledger/v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRow:
    """
    One source tensor.

    Args:
        source: Its name.
        dtype: Its dtype.
        shape: Its shape.
        ranks: Ranks that hold a part of it.
        results: What their tensors are called; empty where nothing reads it.
    """

    source: str
    dtype: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    results: tuple[str, ...]


def shard_rows(
    entries: Iterable[TensorEntry],
    plans: Sequence[RankPlan],
    quantized: frozenset[str],
) -> tuple[ShardRow, ...]:
    """
    One row per source tensor, sorted.

    Args:
        entries: Every tensor of the source.
        plans: All ranks.
        quantized: Linears that come as codes.
    """
    users: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for plan in plans:
        for tensor in plan.tensors:
            for block in tensor.blocks:
                users[block.source].add((plan.rank, tensor.name))
        for linear in plan.linears:
            for cut in linear.cuts:
                users[cut.module].add((plan.rank, linear.name))
                if linear.role == "qkv":
                    users[cut.module.rpartition(".")[0]].add((plan.rank, linear.name))
    rows = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        module, _, part = entry.name.rpartition(".")
        used = users.get(entry.name, set())
        if part in KV_CACHE_PARTS or (module in quantized and not used):
            used = users.get(module, set())
        rows.append(
            ShardRow(
                source=entry.name,
                dtype=entry.dtype,
                shape=entry.shape,
                ranks=tuple(sorted({rank for rank, _ in used})),
                results=tuple(sorted({name for _, name in used})),
            )
        )
    return tuple(rows)


def write_shard_ledger(folder: Path, rows: Iterable[ShardRow]) -> None:
    """Write the ledger, one row per line."""
    lines = [
        json.dumps(asdict(row), sort_keys=True, separators=(",", ":")) for row in rows
    ]
    text = f'{{"schema":"{LEDGER_SCHEMA}","tensors":[\n' + ",\n".join(lines) + "\n]}\n"
    (folder / LEDGER_NAME).write_text(text, "utf-8")
