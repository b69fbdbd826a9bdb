"""Quality gates: measured against allowed, all of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.errors import GateFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lmi_build.numerics.compare import Drift

_MEASURES: Mapping[str, Callable[[Drift], float]] = {
    "max_perplexity_ratio": lambda drift: drift.perplexity_ratio,
    "max_mean_kl": lambda drift: drift.mean_kl,
    "min_top1_agreement": lambda drift: drift.top1_agreement,
    "max_abs_logit_error": lambda drift: drift.max_abs_logit_error,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRow:
    """One gate of the recipe beside what was measured."""

    gate: str
    measured: float
    allowed: float

    @property
    def met(self) -> bool:
        """Whether it holds; a floor begins with `min`, a ceiling with `max`."""
        if self.gate.startswith("min"):
            return self.measured >= self.allowed
        return self.measured <= self.allowed


def judge(drift: Drift, gates: Mapping[str, float | None]) -> tuple[GateRow, ...]:
    """
    A row for each gate that is set.

    Raises:
        KeyError: A gate that nothing measures.
    """
    return tuple(
        GateRow(gate=gate, measured=_MEASURES[gate](drift), allowed=allowed)
        for gate, allowed in sorted(gates.items())
        if allowed is not None
    )


def require_gates(rows: Iterable[GateRow], drift: Drift) -> None:
    """
    Fail the build when a gate is missed.

    Raises:
        GateFailed: `verify.gate-missed`, with every missed gate and all measures.
    """
    missed = [row for row in rows if not row.met]
    if not missed:
        return
    lines = [
        f"{row.gate}: {row.measured:.4g}, allowed"
        f" {'at least' if row.gate.startswith('min') else 'at most'} {row.allowed:g}"
        for row in missed
    ]
    gates = "gate" if len(missed) == 1 else "gates"
    raise GateFailed(
        "\n  ".join([f"{len(missed)} quality {gates} missed", *lines, summary(drift)]),
        code="verify.gate-missed",
        hints=(
            (
                "quantize less: smaller `quantize.group_size`, `sym: false`, 8 bits, or"
                " `ignore` the layers that lose most"
            ),
            (
                "calibrate more: raise `quantize.calibration.num_samples`, or use text"
                " like your own"
            ),
            *(f"or accept `verify.gates.{r.gate}: {_round_off(r)}`" for r in missed),
        ),
    )


def summary(drift: Drift) -> str:
    """All measures in one line."""
    return (
        f"KL {drift.mean_kl:.4f} +- {drift.mean_kl_standard_error:.4f} nats,"
        f" top-1 {drift.top1_agreement:.1%},"
        f" perplexity {drift.engine_perplexity:.3f} against"
        f" {drift.reference_perplexity:.3f} (ratio {drift.perplexity_ratio:.4f}),"
        f" largest logit error {drift.max_abs_logit_error:.3g},"
        f" over {drift.num_tokens} tokens"
    )


def _round_off(row: GateRow) -> str:
    """The measured value, rounded so that it would just pass."""
    slack = 0.98 if row.gate.startswith("min") else 1.02
    return f"{row.measured * slack:.3g}"
