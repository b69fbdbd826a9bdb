"""
What `quantize.py` has to reach, as data, and whether the rows at hand reach it.

Every goal is a quotient of two measures of the same run, or one measure against a
limit. A row that is missing leaves its goal open; nothing is filled in. Where KL misses
a quotient by less than twice the standard error of the difference, taken window by
window, the goal is `level`: on this text the two cannot be told apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Rows: TypeAlias = Mapping[str, Mapping[str, Any]]

# Where a measure stands in a row, and what it is called.
MEASURES = {
    "kl": ("score", "kl"),
    "cpu": ("call", "cpu"),
    "wall": ("call", "wall"),
    "peak": ("whole", "peak"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """
    One thing to reach.

    Args:
        text: In words.
        measure: Key of `MEASURES`.
        ours: `tool:method` that has to reach it.
        limit: Largest value that meets it.
        against: What it is divided by: the least of these; empty divides by nothing.
        reference: Model that it is measured on.
    """

    text: str
    measure: str
    ours: str
    limit: float
    against: tuple[str, ...] = ()
    reference: str = "plain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """
    A goal beside what was measured.

    Args:
        goal: What was to be reached.
        value: What was measured; None where a row is missing.
        note: What the value rests on, where that is not plain.
        noise: How much more than the limit is still no difference.
    """

    goal: Goal
    value: float | None
    note: str = ""
    noise: float = 0.0

    @property
    def word(self) -> str:
        """`met`, `level`, `missed` or `open`."""
        if self.value is None:
            return "open"
        if self.value <= self.goal.limit:
            return "met"
        return "level" if self.value <= self.goal.limit + self.noise else "missed"


_GPTQ_PEERS = (
    "llmcompressor:gptq-sym",
    "llmcompressor:gptq-sym-in-order",
    "gptqmodel:gptq-sym",
)
_AWQ_PEERS = ("llmcompressor:awq-asym", "autoawq:awq-asym")
_SMOOTH_PEERS = ("llmcompressor:smoothquant-0.5",)


def _per_reference(reference: str) -> tuple[Goal, ...]:
    """Quality against the libraries and against the simpler method."""

    def goal(text: str, ours: str, limit: float, *against: str) -> Goal:
        return Goal(
            text=f"{text} ({reference})",
            measure="kl",
            ours=f"ours:{ours}",
            limit=limit,
            against=against,
            reference=reference,
        )

    return (
        goal("GPTQ sym: KL / best library", "gptq-sym", 1.0, *_GPTQ_PEERS),
        goal("AWQ asym: KL / best library", "awq-asym", 1.0, *_AWQ_PEERS),
        goal("SmoothQuant: KL / best library", "smoothquant", 1.0, *_SMOOTH_PEERS),
        goal("INT8: KL / best library", "int8", 1.0, "llmcompressor:int8"),
        goal("W8A8: KL / best library", "w8a8", 1.0, "llmcompressor:w8a8"),
        goal("GPTQ sym: KL / rounding", "gptq-sym", 0.8, "ours:rtn-sym"),
        goal("AWQ asym: KL / rounding", "awq-asym", 0.8, "ours:rtn-asym"),
    )


GOALS = (
    Goal(text="GPTQ sym: KL", measure="kl", ours="ours:gptq-sym", limit=0.145),
    Goal(text="AWQ asym: KL", measure="kl", ours="ours:awq-asym", limit=0.140),
    Goal(
        text="AWQ then GPTQ: KL", measure="kl", ours="ours:awq-gptq-asym", limit=0.125
    ),
    Goal(
        text="SmoothQuant W8A8: KL",
        measure="kl",
        ours="ours:smoothquant",
        limit=0.0170,
    ),
    Goal(text="INT8 weight-only: KL", measure="kl", ours="ours:int8", limit=0.0031),
    *(
        Goal(
            text=f"{name}: {word} / {peer[0].partition(':')[0]}",
            measure=measure,
            ours=f"ours:{method}",
            limit=limit,
            against=peer,
        )
        for measure, word in (("cpu", "CPU"), ("wall", "wall"))
        for name, method, limit, peer in (
            ("GPTQ", "gptq-sym", 0.5, _GPTQ_PEERS[:2]),
            ("GPTQ", "gptq-sym", 0.6, _GPTQ_PEERS[2:]),
            ("AWQ", "awq-asym", 0.35, _AWQ_PEERS[:1]),
            ("SmoothQuant", "smoothquant", 0.25, _SMOOTH_PEERS),
        )
    ),
    *(
        Goal(
            text=f"{name}: peak memory / best library",
            measure="peak",
            ours=f"ours:{method}",
            limit=0.65,
            against=peers,
        )
        for name, method, peers in (
            ("GPTQ", "gptq-sym", _GPTQ_PEERS),
            ("AWQ", "awq-asym", _AWQ_PEERS),
            ("SmoothQuant", "smoothquant", _SMOOTH_PEERS),
        )
    ),
    *(
        Goal(
            text=f"GPTQ: {word} / {peer.partition(':')[0]} (random)",
            measure=measure,
            ours="ours:gptq-sym",
            limit=limit,
            against=(peer,),
            reference="random",
        )
        for measure, word, limit, peer in (
            ("cpu", "CPU", 0.5, "llmcompressor:gptq-sym"),
            ("cpu", "CPU", 0.6, "gptqmodel:gptq-sym"),
            ("peak", "peak memory", 0.65, "llmcompressor:gptq-sym"),
            ("peak", "peak memory", 0.65, "gptqmodel:gptq-sym"),
        )
    ),
    *_per_reference("plain"),
    *_per_reference("dithered"),
    *_per_reference("outlier"),
    Goal(
        text="SmoothQuant: KL / plain W8A8 (outlier)",
        measure="kl",
        ours="ours:smoothquant",
        limit=0.8,
        against=("ours:w8a8",),
        reference="outlier",
    ),
)


def _values(rows: Rows, goal: Goal, name: str) -> dict[int, list[float]]:
    """A measure of a tool's method by calibration samples, one number a seed."""
    outer, inner = MEASURES[goal.measure]
    found: dict[int, list[float]] = {}
    for row in rows.values():
        told = f"{row['tool']}:{row['method']}"
        if told == name and row["reference"] == goal.reference and outer in row:
            found.setdefault(row["samples"], []).append(row[outer][inner])
    return found


def line_through(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least-squares intercept and slope."""
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    return intercept, slope


def at_samples(
    found: Mapping[int, Sequence[float]], samples: int, *, grows: bool
) -> tuple[float | None, str]:
    """
    The measure at a number of calibration samples, mean over seeds.

    Args:
        found: Numbers by samples.
        samples: The wanted number.
        grows: Whether the measure grows linearly with samples, so that two other
            numbers of them give a line.

    Returns:
        The value or None, and a word where it was not measured there.
    """
    means = {count: statistics.fmean(values) for count, values in found.items()}
    if samples in means:
        return means[samples], ""
    if grows and len(means) > 1:
        intercept, slope = line_through(sorted(means.items()))
        counts = " and ".join(map(str, sorted(means)))
        return intercept + slope * samples, f"extrapolated from {counts} samples"
    if means:
        nearest = max(means)
        return means[nearest], f"with {nearest} samples only"
    return None, ""


def _window_kl(rows: Rows, goal: Goal, name: str, samples: int) -> list[float]:
    """KL of each held-out window, mean over seeds; empty where it was not kept."""
    kept = [
        row["score"]["window_kl"]
        for row in rows.values()
        if f"{row['tool']}:{row['method']}" == name
        and row["reference"] == goal.reference
        and row["samples"] == samples
        and "window_kl" in row.get("score", {})
    ]
    return [statistics.fmean(values) for values in zip(*kept, strict=True)]


def _noise(rows: Rows, goal: Goal, peer: str, samples: int) -> float:
    """Twice the standard error of ours less the limit of theirs, over theirs."""
    if goal.measure != "kl":
        return 0.0
    ours = _window_kl(rows, goal, goal.ours, samples)
    theirs = _window_kl(rows, goal, peer, samples)
    if len(ours) != len(theirs) or len(ours) < 2:  # noqa: PLR2004
        return 0.0
    gaps = [a - goal.limit * b for a, b in zip(ours, theirs, strict=True)]
    error: float = statistics.stdev(gaps) / len(gaps) ** 0.5
    return 2 * error / statistics.fmean(theirs)


def _beside(rows: Rows, goal: Goal, peer: str) -> Verdict | None:
    """
    Ours over one peer's, with as many calibration samples as both were run on.

    Where they share no number of samples, the peer's cost is extrapolated along its
    own rows, and its KL is taken as it is; the note says so.
    """
    ours, theirs = _values(rows, goal, goal.ours), _values(rows, goal, peer)
    if not ours or not theirs:
        return None
    most = max(ours)
    samples = max(ours.keys() & theirs.keys(), default=most)
    grows = goal.measure in {"cpu", "wall"}
    found, word = at_samples(theirs, samples, grows=grows)
    assert found is not None
    if samples != most:
        word = f"both with {samples} samples"
    return Verdict(
        goal=goal,
        value=statistics.fmean(ours[samples]) / found,
        note=f"{peer} {word}".strip(),
        noise=_noise(rows, goal, peer, samples),
    )


def _judge_one(rows: Rows, goal: Goal) -> Verdict:
    ours = _values(rows, goal, goal.ours)
    if not goal.against:
        value = statistics.fmean(ours[max(ours)]) if ours else None
        return Verdict(goal=goal, value=value)
    beside = [_beside(rows, goal, peer) for peer in goal.against]
    found = [(x.value, x) for x in beside if x is not None and x.value is not None]
    if not found:
        return Verdict(goal=goal, value=None)
    return max(found, key=lambda pair: pair[0])[1]


def judge(rows: Rows, goals: Sequence[Goal] = GOALS) -> list[Verdict]:
    """Every goal beside what the rows say."""
    return [_judge_one(rows, goal) for goal in goals]


def goals_table(verdicts: Sequence[Verdict]) -> str:
    """The goals as Markdown; open ones are counted, not listed."""
    lines = ["| goal | limit | measured | | against |", "|---|---|---|---|---|"]
    lines += [
        f"| {x.goal.text} | {x.goal.limit:g} | {x.value:.4g} | {x.word} | {x.note} |"
        for x in verdicts
        if x.value is not None
    ]
    words = [x.word for x in verdicts]
    counts = ", ".join(
        f"{words.count(w)} {w}" for w in ("met", "level", "missed", "open")
    )
    return "\n".join([*lines, "", f"Goals: {counts}."])
