"""
From a log to the bounds of an engine: the library's way in.

```python
proposal = propose("requests.jsonl", settings=settings, concurrency=32)
proposal.choice.max_input_len
```
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lmi_build.sizing.arrivals import in_flight
from lmi_build.sizing.load import best_split, bounds_of
from lmi_build.sizing.traffic import (
    EVEN_PADDING,
    PADDED_BATCH,
    choose_all,
    curve_targets,
    measure,
)
from lmi_build.traffic.read import ReadOptions, read_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.sizing.drift import Drift
    from lmi_build.sizing.load import Split
    from lmi_build.sizing.traffic import Choice, Measures
    from lmi_build.traffic.tally import Tally
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.settings import Settings

# Enough for this much of the time; in the rest requests wait, none is rejected.
BUSY_PERCENT = 99.0
# A second engine is a second thing to run; below this it is not worth naming.
SPLIT_SAVES = Fraction(1, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """
    What a log says, and the bounds that follow.

    Args:
        source: Name of the log.
        tally: The counts.
        measures: Percentiles and evenness.
        choice: The cheapest lengths for the wanted share.
        curve: The cheapest lengths for other shares, ascending.
        split: The best two engines, whatever they save; None where none saves.
        split_saves: Share of capacity from which two engines are worth it.
        max_batch_size: Requests at once; None where nothing says it.
        batch_from: Where it comes from, in words.
        bounds: All four; None where the batch is unknown.
    """

    source: str
    tally: Tally
    measures: Measures
    choice: Choice
    curve: tuple[Choice, ...]
    split: Split | None
    split_saves: float
    max_batch_size: int | None
    batch_from: str
    bounds: Bounds | None

    @property
    def two_engines(self) -> bool:
        """Whether two engines save enough."""
        return self.split is not None and self.split.saved_share > self.split_saves


def propose(
    source: str,
    *,
    settings: Settings,
    options: ReadOptions | None = None,
    reject: Fraction = Fraction(1, 1000),
    concurrency: int | None = None,
    request_seconds: int | None = None,
    split_saves: Fraction = SPLIT_SAVES,
) -> Proposal:
    """
    Read a log and choose bounds.

    Args:
        source: A path, `-`, or `s3://bucket/key`.
        settings: Credentials and endpoint of S3.
        options: How to read it.
        reject: Share of requests that may be rejected, from 0 to less than 1.
        concurrency: Requests at once; None takes it from the times of arrival.
        request_seconds: How long one request takes, for the times of arrival.
        split_saves: Share of capacity from which two engines are worth it.

    Raises:
        SourceInvalid: The log cannot be read or says too little.
        RemoteFailed: S3 refused or vanished.
    """
    tally = read_log(source, options or ReadOptions(), settings)
    joint = tally.joint
    targets = curve_targets(reject)
    curve = tuple(choose_all(joint, targets))
    choice = curve[targets.index(reject)]
    measures = measure(joint)
    batch, why = concurrency, "as asked"
    if batch is None and request_seconds is not None and tally.arrivals.total:
        batch = max(1, in_flight(tally.arrivals, request_seconds, BUSY_PERCENT))
        why = (
            f"requests of {request_seconds} s under way at once,"
            f" enough {BUSY_PERCENT:g}% of the time"
        )
    return Proposal(
        source=source,
        tally=tally,
        measures=measures,
        choice=choice,
        curve=curve,
        split=best_split(joint, choice),
        split_saves=float(split_saves),
        max_batch_size=batch,
        batch_from=why if batch is not None else "",
        bounds=bounds_of(choice, measures, batch),
    )


def drift_document(
    source: str, tally: Tally, drifts: Sequence[tuple[str, Drift]]
) -> dict[str, Any]:
    """
    A log against built bounds, for programs.

    Args:
        source: Name of the log.
        tally: Its counts.
        drifts: Name of each set of bounds with what the log says about it.
    """
    return {
        **_log_document(source, tally, drifts[0][1].measures),
        "within": all(found.within for _, found in drifts),
        "built": [
            {
                "name": name,
                "within": found.within,
                "max_input_len": found.max_input_len,
                "max_output_len": found.max_output_len,
                "over_input": found.over_input,
                "over_output": found.over_output,
                "rejected": found.rejected,
                "rejected_share": found.rejected_share,
                "now": choice_document(found.now),
            }
            for name, found in drifts
        ],
    }


def _log_document(source: str, tally: Tally, measures: Measures) -> dict[str, Any]:
    return {
        "source": source,
        "requests": measures.requests,
        "requests_per_second": requests_per_second(tally),
        "bad": {
            kind: {"rows": count, f"{tally.unit}s": list(tally.faults.places(kind))}
            for kind, count in tally.faults.counts.items()
        },
        "lengths": {
            name: _summary(getattr(measures, name))
            for name in ("input", "output", "total")
        },
    }


def requests_per_second(tally: Tally) -> float | None:
    """
    The mean rate from the first to the last time of arrival; None without times.

    Args:
        tally: What was counted.
    """
    seconds = [second for second, _ in tally.arrivals]
    if not seconds:
        return None
    return tally.arrivals.total / (seconds[-1] - seconds[0] + 1)


def proposal_document(proposal: Proposal) -> dict[str, Any]:
    """A proposal for programs."""
    measures = proposal.measures
    return {
        **_log_document(proposal.source, proposal.tally, measures),
        "traffic": {
            "even": measures.even,
            "padding_share": measures.padding_share,
            "padded_batch": PADDED_BATCH,
            "even_below": EVEN_PADDING,
        },
        "bounds": {
            "max_input_len": proposal.choice.max_input_len,
            "max_output_len": proposal.choice.max_output_len,
            "max_batch_size": proposal.max_batch_size,
            "max_num_tokens": (
                proposal.bounds.max_num_tokens if proposal.bounds else None
            ),
            "batch_from": proposal.batch_from,
        },
        "chosen": choice_document(proposal.choice),
        "curve": [choice_document(choice) for choice in proposal.curve],
        "two_engines": (
            {"worth_it": proposal.two_engines, **asdict(proposal.split)}
            if proposal.split
            else None
        ),
    }


def choice_document(choice: Choice) -> dict[str, Any]:
    """A pair of bounds for programs."""
    return {
        "target": float(choice.target),
        "capacity": choice.capacity,
        "max_input_len": choice.max_input_len,
        "max_output_len": choice.max_output_len,
        "rejected": choice.rejected,
        "rejected_share": choice.rejected_share,
    }


def _summary(summary: Any) -> dict[str, Any]:
    return {
        "mean": summary.mean,
        "cv": summary.cv,
        "percentiles": {f"{p:g}": value for p, value in summary.percentiles.items()},
    }
