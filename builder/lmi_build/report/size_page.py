"""Sizes as a page: what each device holds, whether it fits, and where else it would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.report.markup import figures, text
from lmi_build.report.memory_section import badge, memory_section
from lmi_build.report.page import frame
from lmi_build.report.ways_section import Paid, ways_section
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmi_build.plan.places import Way
    from lmi_build.plan.sizes import SizeReport


def render_sizes(
    reports: Sequence[tuple[SizeReport, Sequence[Way]]], *, region: str
) -> str:
    """
    Write the whole page.

    Args:
        reports: What was found, each with other places; empty where there are none.
        region: Of the prices of other places.

    Returns:
        HTML, to be stored as UTF-8; the same reports give the same bytes.

    Raises:
        ToolMissing: `report.no-plots`.
    """
    paid = Paid(
        title="USD an hour of the whole instance",
        said=f"the hour of the whole instance in {region}, at most; on demand unless"
        " its row says otherwise",
    )
    parts = [
        head(report) + memory_section(report) + ways_section(ways, paid)
        for report, ways in reports
    ]
    footer = (
        "Written by lmi-build from config.json and the headers of safetensors files."
        " What is counted has one number, what is a rule of thumb has two."
    )
    return frame(f"{reports[0][0].name}: memory", "\n".join(parts), text(footer))


def head(report: SizeReport) -> str:
    """The verdict and the numbers behind it."""
    bounds = report.bounds
    place = report.place.runtime.name
    if report.instance is not None:
        place += f" on {report.ranks}"
    asked = (
        f"{bounds.max_batch_size} requests at once, prompts to"
        f" {bounds.max_input_len:,} and answers to {bounds.max_output_len:,} tokens,"
        f" served by {place}."
    )
    return (
        f"<header>{badge(report)}"
        f'<h1>{text(report.name)}</h1><p class="lead">{text(asked)}</p>'
        f"{figures(_figures(report))}</header>"
    )


def _figures(report: SizeReport) -> Iterator[tuple[str, str, str]]:
    found = report.fit
    need, capacity = found.total, found.capacity
    yield (
        f"A {report.unit} needs",
        format_bytes(need.high),
        f"at most; {format_bytes(need.low)} at least",
    )
    if capacity is not None and found.margin_bytes is not None:
        worst, best = found.margin_bytes
        name = "Left at worst" if worst >= 0 else "Missing at worst"
        better = "left" if best >= 0 else "missing"
        yield (
            name,
            format_bytes(abs(worst)),
            f"{format_bytes(abs(best))} {better} at best",
        )
    yield "Most of it", found.binding, "what binds"
    yield (
        "Checkpoint",
        format_bytes(report.checkpoint_bytes),
        "tensors on disk, all ranks",
    )
    if report.largest is not None:
        most = report.largest
        yield (
            f"Largest {most.question}",
            f"{most.certain:,}",
            f"for certain; {most.possible:,} at most of {most.limit:,} looked at",
        )
