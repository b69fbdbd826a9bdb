"""What `quantize.py` measured: kept in a file row by row, shown as tables."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `bench` is importable as the tests see it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.quantize_goals import line_through
from bench.quantize_models import memory_bound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(kw_only=True, slots=True)
class Results:
    """
    The results file, written anew after every row.

    Args:
        path: The file.
        document: `machine` and `rows` by key.
    """

    path: Path
    document: dict[str, Any] = field(default_factory=lambda: {"rows": {}})

    @classmethod
    def open(cls, path: Path, *, resume: bool) -> Results:
        """Begin, or go on with what an earlier run measured."""
        results = cls(path=path)
        if resume and path.exists():
            results.document = json.loads(path.read_text())
        elif path.exists():
            sys.exit(f"{path} exists: name another --out, or go on with --resume")
        results.document["machine"] = machine()
        return results

    @property
    def rows(self) -> dict[str, Any]:
        """Rows by key."""
        rows: dict[str, Any] = self.document["rows"]
        return rows

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a row, whatever happens next."""
        self.rows[key] = row
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.document, indent=1))
        part.replace(self.path)


def machine() -> dict[str, Any]:
    """What all rows of a file ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": pages,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows as Markdown, one table for each reference model."""
    head = (
        "tool",
        "method",
        "calibration",
        "CPU s",
        "wall s",
        "CPU s, process",
        "peak MB",
        "loaded MB",
        "out MB",
        "KL",
        "top-1",
        "perplexity",
        "others' cores",
    )
    lines: list[str] = []
    for reference in dict.fromkeys(row["reference"] for row in rows.values()):
        those = [row for row in rows.values() if row["reference"] == reference]
        floats = [x["score"]["reference_perplexity"] for x in those if "score" in x]
        lines += ["", f"Reference: {reference}"]
        lines[-1] += f", perplexity {floats[0]:.3f}" if floats else ""
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in those]
    return "\n".join(lines).lstrip("\n")


def _cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the table; what was not measured is a dash."""
    shape = f"{row['samples']}x{row['length']}, seed {row['seed']}"
    cells = [row["tool"], row["method"], shape]
    if "error" in row:
        last = row["error"].strip().splitlines()[-1:] or [""]
        return [*cells, f"failed: {last[0][:150]}", *["-"] * 9]
    whole, call = row["whole"], row["call"]
    cells += [f"{call['cpu']:.1f}", f"{call['wall']:.1f}", f"{whole['cpu']:.1f}"]
    cells += [f"{whole['peak'] / 1e6:.0f}", f"{call['resident_before'] / 1e6:.0f}"]
    cells += [f"{row['weight_bytes'] / 1e6:.1f}"]
    if "score" in row:
        found = row["score"]
        cells += [f"{found['kl']:.4f} +- {found['kl_stderr']:.4f}"]
        cells += [f"{found['top1']:.3f}", f"{found['perplexity']:.2f}"]
    else:
        cells += ["not scored" if "score_error" in row else "-", "-", "-"]
    return [*cells, f"{row['cores_used_by_others']:.2f}"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What ours cost on one random Llama; peak in MB."""

    layers: int
    tokens: int
    cpu: float
    wall: float
    peak: float


def scaling_costs(rows: Mapping[str, Mapping[str, Any]]) -> list[Cost]:
    """The rows of `--scaling` that finished."""
    return [
        Cost(
            layers=int(row["reference"].partition("-")[2]),
            tokens=row["samples"] * row["length"],
            cpu=row["call"]["cpu"],
            wall=row["call"]["wall"],
            peak=row["whole"]["peak"] / 1e6,
        )
        for row in rows.values()
        if row["reference"].startswith("random-") and "call" in row
    ]


def scaling_table(costs: Sequence[Cost]) -> str:
    """Cost against layers and tokens, with the line through it and what is off it."""
    head = ("layers", "tokens", "CPU s", "wall s", "peak MB", "allowed MB")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [
        f"| {x.layers} | {x.tokens} | {x.cpu:.1f} | {x.wall:.1f} | {x.peak:.0f}"
        f" | {memory_bound(x.tokens) / 1e6:.0f} |"
        for x in costs
    ]
    fewest = min(x.tokens for x in costs), min(x.layers for x in costs)
    deeper = sorted((x.layers, x.cpu) for x in costs if x.tokens == fewest[0])
    longer = sorted((x.tokens, x.cpu) for x in costs if x.layers == fewest[1])
    for word, points in (("layers", deeper), ("tokens", longer)):
        if len(points) > 1:
            intercept, slope = line_through(points)
            off = max(abs(y / (intercept + slope * x) - 1) for x, y in points)
            lines.append(
                f"\nCPU s = {intercept:.1f} + {slope:.4g} x {word};"
                f" largest deviation {off:.1%}."
            )
    peaks = {x.layers: x.peak for x in costs if x.tokens == fewest[0]}
    low, high = min(peaks), max(peaks)
    if low < high:
        lines.append(
            f"\nPeak of {high} layers / of {low}: {peaks[high] / peaks[low]:.3f}"
            " (goal: within 10%)."
        )
    return "\n".join(lines)
