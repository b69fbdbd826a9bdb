"""What a report page shows, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmi_build.checkpoint.layers import Layers
    from lmi_build.numerics.intervals import Interval

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """
    One measure of drift, and the gate on it.

    Args:
        label: Its name for people.
        unit: Written behind the value; may be empty.
        value: As measured.
        perfect: What an engine without loss has.
        interval: Where the value of the whole text lies.
        allowed: The gate; None where the recipe sets none.
        met: Whether the gate holds; None without a gate.
        weak: Whether the interval reaches across the gate.
        meaning: One sentence that says how to read it.
        percent: Whether it is written as a percentage.
    """

    label: str
    unit: str
    value: float
    perfect: float
    interval: Interval | None
    allowed: float | None
    met: bool | None
    weak: bool
    meaning: str
    percent: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """
    What a stage took when it was built.

    Args:
        kind: `fetch`, `quantize` ...
        seconds: Wall time.
        cpu_seconds: Of the worker and its children.
        peak_rss_bytes: Largest resident set of one process.
        out_bytes: Bytes of its result.
        cached: Whether this build found it; None where that is not known.
    """

    kind: str
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    out_bytes: int
    cached: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A prompt of the recipe and what the engine said."""

    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """
    Everything on the page.

    Args:
        name: Of the artifact.
        identity: Digest of its manifest.
        summary: One sentence: which model became what.
        facts: What was built, label and value.
        readings: Drift; empty when it was not verified.
        evidence: One sentence: how much text the readings rest on.
        answers: What the engine said to the recipe's prompts.
        layers: Errors and bits; None when nothing was quantized.
        sizes: Label and bytes, from the source to the artifact.
        stages: What it cost, in order.
        tools: Distribution and version.
        digests: What can be compared.
    """

    name: str
    identity: str
    summary: str
    facts: Pairs
    readings: tuple[Reading, ...]
    evidence: str
    answers: tuple[Answer, ...]
    layers: Layers | None
    sizes: tuple[tuple[str, int], ...]
    stages: tuple[StageCost, ...]
    tools: Pairs
    digests: Pairs
