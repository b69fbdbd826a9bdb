"""What `bounds` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.cli.render import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.sizing.drift import Drift
    from lmi_build.sizing.traffic import Measures
    from lmi_build.traffic.propose import Proposal


def proposal_text(proposal: Proposal) -> str:
    """Lengths, evenness, curve, engines, bounds."""
    parts = [
        lengths_text(proposal.measures),
        _evenness_text(proposal),
        _curve_text(proposal),
    ]
    if proposal.two_engines:
        parts.append(_split_text(proposal))
    parts.append(_bounds_text(proposal))
    return "\n\n".join(parts)


def lengths_text(measures: Measures) -> str:
    """Means, spreads and percentiles."""
    rows = []
    for name in ("input", "output", "total"):
        summary = getattr(measures, name)
        cells = [str(value) for value in summary.percentiles.values()]
        rows.append([name, f"{summary.mean:.1f}", f"{summary.cv:.2f}", *cells])
    percents = [f"p{percent:g}" for percent in measures.input.percentiles]
    head = f"{measures.requests:,} requests; tokens:"
    return f"{head}\n{table(['', 'mean', 'cv', *percents], rows)}"


def _evenness_text(proposal: Proposal) -> str:
    from lmi_build.sizing.traffic import EVEN_PADDING, PADDED_BATCH

    measures = proposal.measures
    word = "even" if measures.even else "uneven"
    return (
        f"traffic is {word}: {measures.padding_share:.0%} of a padded batch of"
        f" {PADDED_BATCH} would be padding (even below {EVEN_PADDING:.0%})"
    )


def _curve_text(proposal: Proposal) -> str:
    rows = []
    for choice in proposal.curve:
        mark = "  <-" if choice.target == proposal.choice.target else ""
        rows.append(
            [
                f"{float(choice.target):g}",
                f"{choice.rejected:,}",
                str(choice.capacity),
                str(choice.max_input_len),
                f"{choice.max_output_len}{mark}",
            ]
        )
    head = ["allowed", "rejected", "capacity", "max_input_len", "max_output_len"]
    return table(head, rows)


def _split_text(proposal: Proposal) -> str:
    split = proposal.split
    assert split is not None  # noqa: S101 - `two_engines` says so
    return (
        f"two engines would reserve {split.saved_share:.0%} less per request:\n"
        f"  {split.short_share:.1%} with prompts of at most {split.at}:"
        f" max_input_len {split.at}, max_output_len {split.short_output_len}\n"
        f"  the others: max_input_len {proposal.choice.max_input_len},"
        f" max_output_len {split.long_output_len}"
    )


def _bounds_text(proposal: Proposal) -> str:
    choice = proposal.choice
    told = f"  # rejects {choice.rejected:,} of {choice.requests:,}"
    lines = [
        "bounds:",
        f"  max_input_len: {choice.max_input_len}",
        f"  max_output_len: {choice.max_output_len}{told}",
    ]
    if proposal.bounds is not None:
        lines += [
            f"  max_batch_size: {proposal.max_batch_size}  # {proposal.batch_from}",
            f"  max_num_tokens: {proposal.bounds.max_num_tokens}",
        ]
    else:
        lines.append(
            "  # max_batch_size: `--concurrency N`, or `--request-seconds S` with times"
        )
    return "\n".join(lines)


def drift_text(drifts: Sequence[tuple[str, Drift]]) -> str:
    """Each set of bounds against the log."""
    measures = drifts[0][1].measures
    parts = [lengths_text(measures)]
    for name, found in drifts:
        told = "within" if found.within else "OVER"
        rows = [
            _against("max_input_len", found.max_input_len, found.over_input, found),
            _against("max_output_len", found.max_output_len, found.over_output, found),
            _against("both", found.capacity, found.rejected, found),
        ]
        head = ["", "built", "rejected", "share"]
        parts.append(
            f"{name}: {told} the target of {float(found.now.target):.3%}\n"
            f"{table(head, rows)}\n"
            f"now the cheapest would be max_input_len {found.now.max_input_len},"
            f" max_output_len {found.now.max_output_len}: capacity"
            f" {found.now.capacity} against {found.capacity}"
        )
    return "\n\n".join(parts)


def _against(name: str, bound: int, over: int, found: Drift) -> list[str]:
    share = over / found.measures.requests
    return [name, str(bound), f"{over:,}", f"{share:.3%}"]
