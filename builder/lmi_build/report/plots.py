"""
Charts with scales, drawn by Vega-Lite as SVG without a script in the page.

Colours are variables of the page's style, so that one drawing serves light, dark and
paper. Each chart is drawn twice, wide and for a phone, because letters do not shrink.
Margins are given, not measured, so that no font of a machine moves anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lmi_build.errors import ToolMissing
from lmi_build.report.markup import text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Spec = Mapping[str, Any]
    Row = Mapping[str, Any]

VEGA_LITE = "6.4"
WIDE, NARROW = 760, 340
# Colours of the style, in the order in which parts of a whole take them.
NUM_COLORS = 10
_FONT = "ui-sans-serif,system-ui,sans-serif"
_SOFT = {
    "labelColor": "var(--soft)",
    "titleColor": "var(--soft)",
    "labelFont": _FONT,
    "titleFont": _FONT,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
}
_CONFIG: Spec = {
    "aria": False,
    "background": None,
    "view": {"stroke": None},
    "axis": {
        **_SOFT,
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelOverlap": False,
        "labelLimit": 400,
    },
    "text": {"font": _FONT, "fontSize": 12, "fill": "var(--ink)"},
}
_LONG = re.compile(r"-?\d+\.\d{2,}(?:e-?\d+)?|-?\d+e-\d+")
_GEOMETRY = re.compile(r'( (?:d|transform|x2?|y2?|width|height)=")([^"]*)"')
_NAMES = re.compile(r' xmlns(:\w+)?="[^"]*"')
# Groups that hold nothing but a box for the mouse.
_EMPTY = re.compile(
    r'<path class="(?:background|foreground)"[^>]*?(?:/>|></path>)|'
    r' (?:pointer-events|role|aria-roledescription|aria-hidden)="[^"]*"'
)


def color(index: int) -> str:
    """A colour of the style by its place."""
    return f"var(--p{index % NUM_COLORS})"


def require_plots() -> None:
    """
    Refuse to go on where charts cannot be drawn.

    Raises:
        ToolMissing: `report.no-plots`.
    """
    try:
        import vl_convert  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ToolMissing(
            "charts of a page are drawn by `vl-convert-python`, which is not installed",
            code="report.no-plots",
            hints=("pip install 'lmi-build[report]'", "or leave `--html` out"),
        ) from error


def draw(spec: Spec, *, width: int, height: int, margins: Sequence[int]) -> str:
    """
    One SVG, as a file may hold it.

    Args:
        spec: Vega-Lite without a size; all data inline.
        width: In pixels, margins included.
        height: In pixels, margins included.
        margins: Left, right, top, bottom.

    Raises:
        ToolMissing: `report.no-plots`.
    """
    require_plots()
    import vl_convert

    left, right, top, bottom = margins
    sized = {
        **spec,
        "config": {**_CONFIG, **spec.get("config", {})},
        "autosize": "none",
        "width": width - left - right,
        "height": height - top - bottom,
        "padding": {"left": left, "right": right, "top": top, "bottom": bottom},
    }
    svg = str(vl_convert.vegalite_to_svg(sized, vl_version=VEGA_LITE))
    svg = _EMPTY.sub("", svg)
    return _GEOMETRY.sub(lambda found: f'{found[1]}{_short(found[2])}"', svg)


def _short(geometry: str) -> str:
    """Coordinates to a tenth of a pixel, the same on every machine."""

    def rounded(found: re.Match[str]) -> str:
        return f"{float(found[0]) + 0.0:.1f}".removesuffix(".0").replace("-0.0", "0")

    return _LONG.sub(rounded, geometry)


def figure(build: Callable[[int], Spec], label: str) -> str:
    """
    A chart of a page, for wide and for narrow screens.

    Args:
        build: From a width to a chart: `spec`, `height`, `margins`.
        label: What readers hear who do not see it; a table says the numbers.

    Raises:
        ToolMissing: `report.no-plots`.
    """
    drawn = ""
    for kind, width in (("wide", WIDE), ("narrow", NARROW)):
        chart = build(width)
        svg = draw(
            chart["spec"],
            width=width,
            height=chart["height"],
            margins=chart["margins"],
        )
        svg = _NAMES.sub("", svg).replace(
            '<svg version="1.1" class="marks"', f'<svg role="img" class="plot {kind}"'
        )
        size = f' width="{width}" height="{chart["height"]}"'
        drawn += svg.replace(size, f' aria-label="{text(label)}"', 1)
    return f"<figure>{drawn}</figure>"


def values(rows: Sequence[Row]) -> Spec:
    """Data of a chart, inline."""
    return {"values": list(rows)}


def ticks(width: int) -> int:
    """How many numbers an axis has room for."""
    return 7 if width > NARROW else 4


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its name."""
    return {"title": title, **more}
