"""The part of a page about memory: what a device must hold, stacked, line by line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.report.markup import prose, text
from lmi_build.report.plots import axis, color, figure, ticks, values
from lmi_build.sizing.fit import CANNOT, FITS, UNPROVEN
from lmi_build.units import GiB, MiB, format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lmi_build.plan.sizes import BuildNeed, SizeReport
    from lmi_build.sizing.fit import FitReport
    from lmi_build.sizing.memory import MemoryLine

KINDS = {FITS: "good", CANNOT: "bad", UNPROVEN: "warn"}
_ENDS = ("at least", "at most")
_BAR, _GAP = 44, 26
_MARGINS = (8, 14, 26, 42)
# Beyond this many GiB an axis counts in them; below in MiB.
_LARGE = 2 * GiB
# Room that nothing is put into stays quiet.
_QUIET = {"fragmentation": "var(--q0)", "left free": "var(--q1)"}


def badge(report: SizeReport) -> str:
    """The verdict in a word or two, coloured."""
    kind, said = KINDS[report.fit.verdict], report.fit.verdict
    if report.place.capacity is None:
        kind, said = "", "memory of the target not known"
    return f'<span class="badge {kind}">{said}</span>'


def group(line: MemoryLine) -> str:
    """What a line is a part of: all weights are one colour."""
    return line.name.partition(":")[0]


def groups(lines: Iterable[MemoryLine]) -> dict[str, str]:
    """The colour of each group, in the order of the lines."""
    names = dict.fromkeys(group(line) for line in lines)
    loud = [name for name in names if name not in _QUIET]
    return _QUIET | {name: color(index) for index, name in enumerate(loud)}


def memory_section(report: SizeReport) -> str:
    """
    The stack of one model on one device, its lines, and what would make it fit.

    Args:
        report: What was found.
    """
    found, place = report.fit, report.place
    ranks, unit = place.tp * place.pp, report.unit
    where = f"One {unit}."
    if report.instance is not None:
        where = f"One {report.instance.device} of {report.instance.name}."
    if ranks > 1:
        where = f"The model is split over {report.ranks}; this is the fullest."
    band = f"The band is what a process can have of the {unit}."
    if found.capacity is None:
        band = "How much memory the device has is not known; `--memory` says it."
    return (
        f"<section><h2>What {'each' if ranks > 1 else 'the'} {unit} holds</h2>"
        f'<p class="note">{text(where)} Two bars, because rules of thumb are ranges:'
        f" the least and the most that it takes. {prose(band)}</p>"
        f"{stack_chart(found, report.name)}{_lines(found)}</section>"
        f"{_unknown(found)}{_changes(report)}{_build(report.build)}"
    )


def stack_chart(found: FitReport, name: str) -> str:
    """
    The lines as two stacked bars with the device's memory.

    Args:
        found: The lines.
        name: Of the model, for those who do not see.
    """
    need, capacity = found.total, found.capacity
    verdict = f"{name}: {format_bytes(need.low)} to {format_bytes(need.high)}"
    if capacity is not None:
        verdict += f" of {format_bytes(capacity.high)}"
    return figure(
        lambda width: stack_spec(found, width), f"memory of a device, {verdict}"
    )


def stack_spec(found: FitReport, width: int) -> dict[str, Any]:
    """The chart of `stack_chart`."""
    need, capacity = found.total, found.capacity
    most = max(need.high, capacity.high if capacity else 0)
    unit, name = (GiB, "GiB") if most >= _LARGE else (MiB, "MiB")
    colors = groups(found.lines)
    scale = {"domain": [0, most / unit * 1.02], "nice": False}
    x = {"type": "quantitative", "scale": scale}
    heights = {end: index * (_BAR + _GAP) for index, end in enumerate(_ENDS)}
    height = len(_ENDS) * (_BAR + _GAP)
    layers: list[dict[str, Any]] = []
    if capacity is not None:
        layers.append(_band(capacity.low / unit, capacity.high / unit, x))
    layers += [
        {
            "data": values(_rects(found.lines, colors, heights, unit)),
            "mark": {"type": "rect", "stroke": "var(--ground)", "strokeWidth": 0.7},
            "encoding": {
                "x": {
                    **x,
                    "field": "start",
                    "axis": axis(
                        f"{name} of one device", grid=False, tickCount=ticks(width)
                    ),
                },
                "x2": {"field": "stop"},
                "y": {
                    "field": "top",
                    "type": "quantitative",
                    "axis": None,
                    "scale": {"domain": [0, height], "nice": False, "reverse": True},
                },
                "y2": {"field": "bottom"},
                "fill": {"field": "color", "type": "nominal", "scale": None},
            },
        },
        {
            "data": values(
                [
                    {"y": heights[end], "said": f"{end} {format_bytes(size)}"}
                    for end, size in zip(_ENDS, (need.low, need.high), strict=True)
                ]
            ),
            "mark": {"type": "text", "align": "left", "baseline": "bottom", "dy": 16},
            "encoding": {
                "x": {"value": 1},
                "y": {"field": "y", "type": "quantitative"},
                "text": {"field": "said"},
            },
        },
    ]
    top, bottom = _MARGINS[2], _MARGINS[3]
    return {
        "spec": {"layer": layers},
        "height": height + top + bottom,
        "margins": _MARGINS,
    }


def _rects(
    lines: Sequence[MemoryLine],
    colors: dict[str, str],
    heights: dict[str, int],
    unit: int,
) -> list[dict[str, Any]]:
    """Every line as two rectangles, one of each bar."""
    rects: list[dict[str, Any]] = []
    for end, top in heights.items():
        start = 0
        for line in lines:
            size = line.bytes.low if end == _ENDS[0] else line.bytes.high
            begin, stop = round(start / unit, 4), round((start + size) / unit, 4)
            start += size
            if begin == stop:
                continue
            rects.append(
                {
                    "start": begin,
                    "stop": stop,
                    "top": top + _GAP - 4,
                    "bottom": top + _GAP - 4 + _BAR,
                    "color": colors[group(line)],
                }
            )
    return rects


def _band(low: float, high: float, x: dict[str, Any]) -> dict[str, Any]:
    """What a process can have of a device, from and to, with its name above."""
    row = {"low": round(low, 4), "high": round(high, 4), "said": "device"}
    at = {"x": {**x, "field": "low"}}
    return {
        "data": values([row]),
        "layer": [
            {
                "mark": {"type": "rect", "fill": "var(--bad)", "fillOpacity": 0.22},
                "encoding": {**at, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "rule", "stroke": "var(--bad)", "strokeWidth": 2},
                "encoding": {"x": {**x, "field": "high"}},
            },
            {
                "mark": {
                    "type": "text",
                    "align": "right",
                    "baseline": "bottom",
                    "dy": -6,
                    "fill": "var(--bad)",
                },
                "encoding": {
                    "x": {**x, "field": "high"},
                    "y": {"value": 0},
                    "text": {"field": "said"},
                },
            },
        ],
    }


def _lines(found: FitReport) -> str:
    """Every line with its bytes, its formula and where that stands."""
    colors = groups(found.lines)
    sources = list(dict.fromkeys(line.source for line in found.lines))
    rows = "".join(
        f'<tr><th scope="row">{_key(colors[group(line)])}{text(line.name)}</th>'
        f"{_bytes(line.bytes.low, 0)}{_bytes(line.bytes.high, 1)}"
        f"<td>{prose(line.formula)} <sup>{sources.index(line.source) + 1}</sup></td>"
        "</tr>"
        for line in found.lines
    )
    need, capacity = found.total, found.capacity
    rows += _sum("together", need.low, need.high, "sum of the lines")
    if capacity is not None and found.margin_bytes is not None:
        had = capacity.low, capacity.high
        rows += _sum("device", *had, "what a process can have of it")
        rows += _sum("margin", *found.margin_bytes, "at worst and at best")
    listed = "".join(f"<li>{prose(source)}</li>" for source in sources)
    return (
        '<div class="scroll"><table class="memory"><thead><tr><th scope="col">line</th>'
        '<th scope="col" class="n">at least</th><th scope="col" class="n">at most</th>'
        f'<th scope="col">formula</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f'<ol class="sources">{listed}</ol>'
    )


def _sum(name: str, low: int, high: int, said: str) -> str:
    return (
        f'<tr class="sum"><th scope="row">{name}</th>{_bytes(low, 0)}{_bytes(high, 1)}'
        f"<td>{said}</td></tr>"
    )


def _bytes(count: int, end: int) -> str:
    """A size as people read it, and exactly; phones name the column in the cell."""
    exact = "" if abs(count) < 1 << 10 else f"<small>{count:,}</small>"
    return f'<td class="n {("low", "high")[end]}">{format_bytes(count)}{exact}</td>'


def _key(named: str) -> str:
    return (
        '<span class="key"><svg viewBox="0 0 10 10" aria-hidden="true"'
        f' focusable="false"><rect fill="{named}" width="10" height="10" rx="3"/></svg>'
        "</span>"
    )


def _unknown(found: FitReport) -> str:
    if not found.unknown:
        return ""
    items = "".join(f"<li>{prose(why)}</li>" for why in found.unknown)
    return (
        "<section><h2>What is not certain</h2>"
        f'<ul class="findings">{items}</ul></section>'
    )


def _changes(report: SizeReport) -> str:
    """What would make it fit; each was tried."""
    if report.fit.verdict == FITS or report.place.capacity is None:
        return ""
    items = "".join(f"<li>{prose(change.text)}</li>" for change in report.changes)
    said = (
        f'<ul class="findings">{items}</ul>'
        if items
        else "<p>No single change of bounds, bits or machine makes it fit.</p>"
    )
    return (
        '<section><h2>What would make it fit</h2><p class="note">Any one of these, the'
        f" mildest first; each was counted again and fits for certain.</p>{said}"
        "</section>"
    )


def _build(need: BuildNeed | None) -> str:
    if need is None:
        return ""
    pairs = (
        ("Memory", f"{format_bytes(need.ram_bytes)}, in stage `{need.ram_stage}`"),
        ("Disk", format_bytes(need.disk_bytes)),
        ("Download", format_bytes(need.download_bytes)),
    )
    rows = "".join(f"<dt>{name}</dt><dd>{prose(said)}</dd>" for name, said in pairs)
    return f'<section><h2>To build it</h2><dl class="pairs">{rows}</dl></section>'
