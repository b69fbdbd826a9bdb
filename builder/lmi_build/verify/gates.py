"""
Quality gates: measured against allowed, all of them at once.

A gate is judged by the measured value alone, so that the verdict is plain and the same
for everyone who has the number. Where the value's interval reaches across the gate, a
note says that other text could have ended otherwise, and how many windows would tell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.errors import GateFailed
from lmi_build.numerics.intervals import LEVEL, Interval, windows_to_settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lmi_build.numerics.compare import Drift

_MEASURES: Mapping[str, Callable[[Drift], tuple[float, Interval | None]]] = {
    "max_perplexity_ratio": lambda drift: (
        drift.perplexity_ratio,
        drift.perplexity_ratio_interval,
    ),
    "max_mean_kl": lambda drift: (drift.mean_kl, drift.mean_kl_interval),
    "min_top1_agreement": lambda drift: (
        drift.top1_agreement,
        drift.top1_agreement_interval,
    ),
    "max_abs_logit_error": lambda drift: (drift.max_abs_logit_error, None),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRow:
    """
    One gate of the recipe beside what was measured.

    Args:
        gate: Key of `verify.gates`.
        measured: The value on the held-out windows; it decides.
        allowed: The recipe's value.
        interval: Where the value of the whole text lies; None where it has none.
        num_windows: Windows that were compared.
    """

    gate: str
    measured: float
    allowed: float
    interval: Interval | None = None
    num_windows: int = 0

    @property
    def met(self) -> bool:
        """Whether it holds; a floor begins with `min`, a ceiling with `max`."""
        if self.gate.startswith("min"):
            return self.measured >= self.allowed
        return self.measured <= self.allowed

    @property
    def weak(self) -> bool:
        """Whether the interval reaches across the gate: more windows could turn it."""
        span = self.interval
        return span is not None and span.low <= self.allowed <= span.high

    def windows_needed(self, most: int) -> int:
        """
        Windows that would tell the value from the gate, if it is what was measured.

        Args:
            most: Windows that there are at all; `most + 1` means not even those.
        """
        if self.interval is None or self.num_windows < 2:  # noqa: PLR2004
            return most + 1
        above = self.allowed >= self.measured
        end = self.interval.high if above else self.interval.low
        return windows_to_settle(
            self.num_windows,
            half=abs(end - self.measured),
            distance=abs(self.allowed - self.measured),
            most=most,
        )

    def to_json(self) -> dict[str, Any]:
        """The row as it stands in `verify.json`."""
        return {**asdict(self), "met": self.met, "weak": self.weak}


def judge(drift: Drift, gates: Mapping[str, float | None]) -> tuple[GateRow, ...]:
    """
    A row for each gate that is set.

    Raises:
        KeyError: A gate that nothing measures.
    """
    rows = []
    for gate, allowed in sorted(gates.items()):
        if allowed is None:
            continue
        measured, interval = _MEASURES[gate](drift)
        rows.append(
            GateRow(
                gate=gate,
                measured=measured,
                allowed=allowed,
                interval=interval,
                num_windows=drift.num_windows,
            )
        )
    return tuple(rows)


def weak_note(row: GateRow, *, most: int) -> str:
    """
    Say that a verdict could turn on other text, and what would settle it.

    Args:
        row: One whose evidence is weak.
        most: Windows that the held-out text has.
    """
    verdict = "met" if row.met else "missed"
    needed = row.windows_needed(most)
    text = (
        f"gate {row.gate} is {verdict} on weak evidence: {_value(row)} reaches across"
        f" {row.allowed:g};"
    )
    if needed > most:
        return f"{text} all {most} windows of the held-out text would not settle it"
    return f"{text} `verify.num_samples: {needed}` would settle it"


def require_gates(
    rows: Iterable[GateRow],
    drift: Drift,
    *,
    worst: Iterable[str] = (),
    advice: Iterable[str] = (),
) -> None:
    """
    Fail the build when a gate is missed.

    Args:
        rows: Every gate that is set.
        drift: What was measured.
        worst: Lines about the layers that lose most.
        advice: What to try, best first.

    Raises:
        GateFailed: `verify.gate-missed`, with every missed gate and all measures.
    """
    missed = [row for row in rows if not row.met]
    if not missed:
        return
    lines = [
        f"{row.gate}: {_value(row)}, allowed"
        f" {'at least' if row.gate.startswith('min') else 'at most'} {row.allowed:g}"
        for row in missed
    ]
    gates = "gate" if len(missed) == 1 else "gates"
    raise GateFailed(
        "\n  ".join(
            [
                f"{len(missed)} quality {gates} missed",
                *lines,
                *summary(drift),
                *worst,
            ]
        ),
        code="verify.gate-missed",
        hints=(
            *advice,
            *(f"or accept `verify.gates.{r.gate}: {_round_off(r)}`" for r in missed),
        ),
    )


def summary(drift: Drift) -> tuple[str, ...]:
    """All measures, a line each, the method of the intervals last."""
    top1, span = drift.top1_agreement, drift.top1_agreement_interval
    shares = f" [{span.low:.1%}, {span.high:.1%}]" if span else ""
    ratio = f"{drift.perplexity_ratio:.4f}{_span(drift.perplexity_ratio_interval)}"
    both = f"{drift.engine_perplexity:.3f} against {drift.reference_perplexity:.3f}"
    text = f"over {drift.num_tokens} tokens in {drift.num_windows}"
    how = (
        f"{text} windows; in brackets {LEVEL:.0%} intervals"
        if span
        else f"{text} window: no interval, which needs two"
    )
    return (
        f"KL {drift.mean_kl:.4f}{_span(drift.mean_kl_interval)} nats",
        f"top-1 {top1:.1%}{shares}",
        f"perplexity {both}, ratio {ratio}",
        f"largest logit error {drift.max_abs_logit_error:.3g}",
        how,
    )


def _value(row: GateRow) -> str:
    return f"{row.measured:.4g}{_span(row.interval)}"


def _span(interval: Interval | None) -> str:
    return f" [{interval.low:.4g}, {interval.high:.4g}]" if interval else ""


def _round_off(row: GateRow) -> str:
    """The measured value, rounded so that it would just pass."""
    slack = 0.98 if row.gate.startswith("min") else 1.02
    return f"{row.measured * slack:.3g}"
