"""The part of a page about other places: money against margin, with their front."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.prices import CAPACITY_BLOCK, EC2
from lmi_build.plan.places import front
from lmi_build.report.markup import text
from lmi_build.report.plots import axis, color, figure, ticks, values
from lmi_build.sizing.fit import FITS
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.plan.places import Way

_HEIGHT, _MARGINS = 410, (56, 18, 36, 48)
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
# Below this share missing a way is out of the picture; the table of none has it.
_LOWEST = -0.5
# What stands beside an instance whose price is not SageMaker's own.
_DERIVED = {
    EC2: "; price derived from EC2's",
    CAPACITY_BLOCK: "; price derived from EC2's for Capacity Blocks",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Paid:
    """
    What money stands for.

    Args:
        title: Of the axis.
        said: In a sentence.
    """

    title: str
    said: str


def ways_section(ways: Sequence[Way], paid: Paid) -> str:
    """
    Where else a model could be served; nothing where no way is known.

    Args:
        ways: The cheapest first.
        paid: What money stands for.

    Raises:
        ToolMissing: `report.no-plots`.
    """
    if not ways:
        return ""
    best = front(ways)
    said = (
        f"Each mark is an instance with a number format; up is dearer ({paid.said}),"
        " right is safer: what a device has left at worst. Filled marks fit for"
        " certain, faint ones may. The line joins those that nothing beats in both;"
        " their numbers are those of the table. The ring is what was asked about."
    )
    label = f"cost against margin of {len(ways)} ways, {len(best)} of them unbeaten"
    chart = figure(lambda width: ways_spec(ways, paid, width), label)
    return (
        f'<section><h2>Cost against margin</h2><p class="note">{text(said)}</p>'
        f"{_legend(ways)}{chart}{_table(best, paid)}{_all(ways, paid)}</section>"
    )


def methods(ways: Sequence[Way]) -> dict[str, int]:
    """The place of each number format among colours and marks, commonest first."""
    counted = Counter(way.method for way in ways)
    order = sorted(counted, key=lambda name: (-counted[name], name))
    return {name: index for index, name in enumerate(order)}


def _axes(seen: Sequence[Way], paid: Paid, width: int) -> dict[str, Any]:
    """Margin to the right, money upwards."""
    return {
        "x": {
            "field": "margin",
            "type": "quantitative",
            "scale": {"domain": _span(seen), "nice": False},
            "axis": axis(
                "left at worst, share of the device", format="%", tickCount=ticks(width)
            ),
        },
        "y": {
            "field": "paid",
            "type": "quantitative",
            "scale": {"type": "log", "domain": _prices(seen), "nice": False},
            "axis": axis(paid.title, format="~g", tickCount=6, titleAnchor="start")
            | {"titleAngle": 0, "titleAlign": "left", "titleX": -50, "titleY": -14},
        },
    }


def ways_spec(ways: Sequence[Way], paid: Paid, width: int) -> dict[str, Any]:
    """The chart of `ways_section`."""
    places = methods(ways)
    seen = [way for way in ways if way.margin_share >= _LOWEST]
    best = front(ways)
    rows = [_row(way, places) for way in seen]
    line = [
        {**_row(way, places), "said": str(number)} for number, way in enumerate(best, 1)
    ]
    at = _axes(seen, paid, width)
    layers = [
        {
            "data": values(rows),
            "mark": {"type": "point", "filled": True, "size": 55},
            "encoding": {
                **at,
                "fill": {"field": "color", "type": "nominal", "scale": None},
                "shape": {"field": "shape", "type": "nominal", "scale": None},
                "fillOpacity": {"field": "sure", "type": "quantitative", "scale": None},
            },
        },
        {
            "data": values(line),
            "mark": {
                "type": "line",
                "interpolate": "step-after",
                "stroke": "var(--ink)",
                "strokeWidth": 1.2,
            },
            "encoding": {**at, "order": {"field": "margin", "type": "quantitative"}},
        },
        {
            "data": values([row for row in rows if row["asked"]]),
            "mark": {
                "type": "point",
                "filled": False,
                "size": 260,
                "stroke": "var(--ink)",
                "strokeWidth": 2,
            },
            "encoding": at,
        },
        {
            "data": values(line),
            "mark": {"type": "text", "dy": -11, "dx": -5, "fontWeight": "bold"},
            "encoding": {**at, "text": {"field": "said"}},
        },
    ]
    return {"spec": {"layer": layers}, "height": _HEIGHT, "margins": _MARGINS}


def _row(way: Way, places: dict[str, int]) -> dict[str, Any]:
    index = places[way.method]
    return {
        "margin": round(way.margin_share, 4),
        "paid": float(f"{way.paid.high:.5g}"),
        "color": color(index),
        "shape": _SHAPES[index % len(_SHAPES)],
        "sure": 1 if way.verdict == FITS else 0.28,
        "asked": way.asked,
    }


def _span(ways: Sequence[Way]) -> list[float]:
    shares = [way.margin_share for way in ways]
    low, high = min(0.0, *shares), max(0.0, *shares)
    room = 0.04 * (high - low)
    return [round(low - room, 4), round(high + room, 4)]


def _prices(ways: Sequence[Way]) -> list[float]:
    paid = [way.paid.high for way in ways]
    return [float(f"{min(paid) / 1.3:.4g}"), float(f"{max(paid) * 1.3:.4g}")]


def _legend(ways: Sequence[Way]) -> str:
    items = "".join(
        f'<li><svg viewBox="-8 -8 16 16" aria-hidden="true" focusable="false">'
        f'<path fill="{color(index)}" d="{_PATHS[index % len(_PATHS)]}"/></svg>'
        f"{text(name)}</li>"
        for name, index in methods(ways).items()
    )
    return f'<ul class="legend">{items}</ul>'


# The marks of `_SHAPES`, for the legend.
_PATHS = (
    "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z",
    "M-4.5-4.5H4.5V4.5H-4.5Z",
    "M0-5L5.5 4.5H-5.5Z",
    "M0-6L4 0L0 6L-4 0Z",
    "M-6-2H-2V-6H2V-2H6V2H2V6H-2V2H-6Z",
    "M0 5L5.5-4.5H-5.5Z",
)


def _table(best: Sequence[Way], paid: Paid) -> str:
    if not best:
        return "<p>None fits for certain.</p>"
    rows = "".join(
        f'<tr><td class="n">{number}</td>{_cells(way)}</tr>'
        for number, way in enumerate(best, 1)
    )
    return (
        '<div class="scroll"><table><caption>What nothing beats in both</caption>'
        f'<thead><tr><th scope="col" class="n"></th>{_heads(paid)}</tr></thead><tbody>'
        f"{rows}</tbody></table></div>"
    )


def _all(ways: Sequence[Way], paid: Paid) -> str:
    rows = "".join(f"<tr>{_cells(way)}<td>{way.verdict}</td></tr>" for way in ways)
    return (
        f"<details><summary>All {len(ways)} ways</summary>"
        f'<div class="scroll"><table class="matrix"><thead><tr>{_heads(paid)}'
        '<th scope="col">verdict</th></tr></thead><tbody>'
        f"{rows}</tbody></table></div></details>"
    )


def _heads(paid: Paid) -> str:
    return (
        '<th scope="col">instance</th><th scope="col" class="opt">weights</th>'
        '<th scope="col" class="n opt">ranks</th>'
        f'<th scope="col" class="n">{text(paid.title)}</th>'
        '<th scope="col" class="n">left at worst</th>'
    )


def _cells(way: Way) -> str:
    devices = f"{way.num_devices} x {way.device}{_DERIVED.get(way.price_basis, '')}"
    low, high = money(way.paid.low), money(way.paid.high)
    cost = high if low == high else f"{low} to {high}"
    left = f"{format_bytes(way.margin_bytes)}, {way.margin_share:.0%}"
    short = text(f"{way.method}, ranks: {way.tensor_parallel_size}")
    asked = " <strong>(asked)</strong>" if way.asked else ""
    return (
        f'<th scope="row">{text(way.instance)}{asked}'
        f'<small class="soft">{text(devices)}<span class="only">, {short}</span>'
        f'</small></th><td class="opt">{text(way.method)}</td>'
        f'<td class="n opt">{way.tensor_parallel_size}</td>'
        f'<td class="n">{cost}</td><td class="n">{left}</td>'
    )


def money(number: float) -> str:
    """Three digits, as the command prints them."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"  # noqa: PLR2004
