"""Costs as a page: ranges as intervals, cheaper ways, and money against margin."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

from lmi_build.costs import cost_lines, paid_of
from lmi_build.plan.price_words import way_words
from lmi_build.report.markup import figures, prose, text
from lmi_build.report.page import frame
from lmi_build.report.plots import NARROW, axis, figure, ticks, values
from lmi_build.report.ways_section import Paid, money, ways_section

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmi_build.costs import CostReport
    from lmi_build.values.ranges import Range

_ROW, _LINE = 30, 16
_MARGINS = (10, 22, 6, 46)
_THIS = "this recipe"


def render_costs(reports: Sequence[CostReport]) -> str:
    """
    Write the whole page.

    Args:
        reports: What was found, with `ways` where they were asked for.

    Returns:
        HTML, to be stored as UTF-8; the same reports give the same bytes.

    Raises:
        ToolMissing: `report.no-plots`.
    """
    parts = [
        _head(report)
        + _intervals(report)
        + _lines(report)
        + ways_section(report.ways, _paid(report))
        + _notes(report)
        for report in reports
    ]
    footer = (
        "Written by lmi-build. Arithmetic on public prices and peak rates, not a"
        " measurement: ranges are wide on purpose, and fewer bits cost quality."
    )
    return frame(f"{reports[0].name}: cost", "\n".join(parts), text(footer))


def _paid(report: CostReport) -> Paid:
    if report.cost.num_instances is not None:
        return Paid(
            title="USD an hour, all instances",
            said="the reserved hours of all instances that the rate needs, at most",
        )
    return Paid(
        title="USD a million tokens, busy",
        said="a million tokens of a full instance, at most; a large one is not cheap"
        " where requests do not fill it",
    )


def _span(ends: Range) -> str:
    low, high = money(ends.low), money(ends.high)
    return low if low == high else f"{low} to {high}"


def _head(report: CostReport) -> str:
    price, traffic = report.price, report.traffic
    kind, said = ("good", "fits") if report.fits else ("warn", "not proven to fit")
    copies = f"{report.num_copies} copies, " if report.num_copies > 1 else ""
    rate = traffic.requests_per_second
    asked = (
        f"{report.instance.name} in {price.region}, {price.words}; requests"
        f" of {traffic.mean_input_len:g} +"
        f" {traffic.mean_output_len:g} tokens, {copies}{report.batch_size} at once"
        + (f", {rate:.3g} a second." if rate is not None else ".")
    )
    return (
        f'<header><span class="badge {kind}">{said}</span><h1>{text(report.name)}</h1>'
        f'<p class="lead">{text(asked)}</p>{figures(_figures(report))}</header>'
    )


def _figures(report: CostReport) -> Iterator[tuple[str, str, str]]:
    found = report.cost
    yield "A million tokens", _span(found.usd_per_million), "USD, when full"
    if found.reserved_usd_per_million is not None:
        span = _span(found.reserved_usd_per_million)
        yield "A million tokens", span, "USD, always on, at this rate"
    yield "Capacity", _span(found.speed.requests_per_second), "requests/s an instance"
    if found.num_instances is not None:
        yield "Instances", _span(found.num_instances), "for this rate"
    if report.build is not None:
        built = report.build
        hours = f"USD; {_span(built.hours)} hours on {built.instance}, by rule of thumb"
        hours += ", price derived from EC2's" if built.price.derived else ""
        yield "The build", _span(built.usd), hours


def _intervals(report: CostReport) -> str:
    """This recipe and every cheaper way, as ranges of what is paid."""
    ends, unit = paid_of(report.cost)
    rows = [
        (_THIS, ends),
        *((way_words(it.setup), paid_of(it.cost)[0]) for it in report.alternatives),
    ]
    body = "".join(
        f'<tr><th scope="row">{text(said)}</th><td class="n">{money(each.low)}</td>'
        f'<td class="n">{money(each.high)}</td></tr>'
        for said, each in rows
    )
    said = (
        "Each bar goes from the best case to the worst. Every way below the first is"
        " cheaper at both ends, and fits for certain."
        if report.alternatives
        else "From the best case to the worst. No cheaper way that fits for certain was"
        " found."
    )
    label = f"cost of {len(rows)} ways in {unit}, from and to"
    chart = figure(lambda width: interval_spec(rows, unit, width), label)
    return (
        f'<section><h2>What it costs, and what would cost less</h2><p class="note">'
        f'{said}</p>{chart}<div class="scroll"><table><thead><tr><th scope="col">way'
        f'</th><th scope="col" class="n">from, {unit}</th><th scope="col" class="n">to'
        f"</th></tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def interval_spec(
    rows: Sequence[tuple[str, Range]], unit: str, width: int
) -> dict[str, Any]:
    """Ranges beneath each other on one logarithmic scale, each with its name above."""
    low = min(ends.low for _, ends in rows) / 1.15
    high = max(ends.high for _, ends in rows) * 1.15
    bars, height = _bars(rows, width)
    x = {
        "field": "low",
        "type": "quantitative",
        "scale": {
            "type": "log",
            "domain": [float(f"{low:.4g}"), float(f"{high:.4g}")],
            "nice": False,
        },
        "axis": axis(unit, format="~g", tickCount=ticks(width)),
    }
    scale = {"domain": [0, height], "nice": False, "reverse": True}
    y = {"type": "quantitative", "scale": scale, "axis": None}
    color = {"field": "color", "type": "nominal", "scale": None}
    layers = [
        {
            "mark": {"type": "rule", "strokeWidth": 9, "strokeCap": "round"},
            "encoding": {
                "x": x,
                "x2": {"field": "high"},
                "y": {**y, "field": "y"},
                "stroke": color,
            },
        },
        {
            "mark": {
                "type": "text",
                "align": "left",
                "baseline": "top",
                "lineHeight": _LINE,
            },
            "encoding": {
                "x": {"value": 0},
                "y": {**y, "field": "label"},
                "text": {"field": "said"},
            },
        },
    ]
    top, bottom = _MARGINS[2], _MARGINS[3]
    spec = {"data": values(bars), "layer": layers}
    return {"spec": spec, "height": height + top + bottom, "margins": _MARGINS}


def _bars(
    rows: Sequence[tuple[str, Range]], width: int
) -> tuple[list[dict[str, Any]], int]:
    """Rows of the chart with their places; names that are too long are broken."""
    bars, top = [], 0
    for said, ends in rows:
        lines = wrap(said, 46 if width <= NARROW else 100)
        bars.append(
            {
                "low": float(f"{ends.low:.5g}"),
                "high": float(f"{ends.high:.5g}"),
                "label": top + 6,
                "y": top + 6 + _LINE * len(lines) + 8,
                "said": lines,
                "color": "var(--p1)" if said == _THIS else "var(--p0)",
            }
        )
        top += _ROW + _LINE * len(lines)
    return bars, top


def _lines(report: CostReport) -> str:
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td class="n">{money(ends.low)}</td>'
        f'<td class="n">{money(ends.high)}</td><td>{unit}</td></tr>'
        for name, ends, unit in cost_lines(report.cost)
    )
    return (
        '<section><h2>Line by line</h2><div class="scroll"><table><thead><tr>'
        '<th scope="col"></th><th scope="col" class="n">from</th>'
        '<th scope="col" class="n">to</th><th scope="col">unit</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _notes(report: CostReport) -> str:
    price = report.price
    notes = [*report.notes, f"the price was read in {price.source}"]
    items = "".join(f"<li>{prose(note)}</li>" for note in notes)
    return f'<section><h2>What to know</h2><ul class="findings">{items}</ul></section>'
