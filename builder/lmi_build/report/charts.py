"""
Charts as inline SVG, drawn with numbers rounded to a tenth so that bytes are stable.

Colours are classes of the page's style, so that one drawing serves light, dark and
paper. Every chart is a picture of a table that stands in the page too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lmi_build.report.markup import number, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lmi_build.report.data import Reading

# Ends of an interval's track in percent of the width, and room beyond the last mark.
_TRACK = (1.5, 98.5)
_HEADROOM = 1.25
# A panel of the errors: room for the axis' numbers to the left and below.
_PANEL = (240.0, 130.0)
_AREA = (40.0, 8.0, 234.0, 108.0)
_MAX_DECADES = 12
# More dots than this touch each other; a line between them says nothing.
_MAX_JOINED = 240


def at(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def interval_chart(reading: Reading) -> str:
    """
    Where a value lies between perfect, at the left, and its gate.

    The band is the interval, the dot the value, the red end what the gate refuses.
    Positions are percentages, so that it is as wide as the page allows.
    """
    marks = [reading.value]
    if reading.interval:
        marks += [reading.interval.low, reading.interval.high]
    if reading.allowed is not None:
        marks.append(reading.allowed)
    reach = max(abs(mark - reading.perfect) for mark in marks) * _HEADROOM or 1.0

    def x(value: float) -> str:
        share = min(1.0, abs(value - reading.perfect) / reach)
        return f"{_TRACK[0] + (_TRACK[1] - _TRACK[0]) * share:.2f}%"

    def line(kind: str, start: str, end: str) -> str:
        return f'<line class="{kind}" x1="{start}" x2="{end}" y1="20" y2="20"/>'

    parts = [line("track", f"{_TRACK[0]:g}%", f"{_TRACK[1]:g}%")]
    if reading.allowed is not None:
        parts.append(line("refused", x(reading.allowed), f"{_TRACK[1]:g}%"))
    if reading.interval:
        parts.append(line("band", x(reading.interval.low), x(reading.interval.high)))
    if reading.allowed is not None:
        gate = x(reading.allowed)
        parts.append(f'<line class="gate" x1="{gate}" x2="{gate}" y1="6" y2="34"/>')
    parts.append(f'<circle class="dot" cx="{x(reading.value)}" cy="20" r="6"/>')
    return (
        '<svg class="interval" width="100%" height="40" aria-hidden="true"'
        f' focusable="false">{"".join(parts)}</svg>'
    )


def decades(values: Iterable[float]) -> tuple[float, float]:
    """Halves of powers of ten around all values above zero, a whole one at least."""
    positive = [value for value in values if value > 0]
    if not positive:
        return -1.0, 0.0
    low = math.floor(2 * math.log10(min(positive))) / 2
    high = math.ceil(2 * math.log10(max(positive))) / 2
    if math.floor(high) == math.floor(low) < low or high - low < 1:
        low, high = float(math.floor(low)), float(math.floor(low) + 1)
    return max(low, high - _MAX_DECADES), high


def error_panel(
    label: str,
    points: Sequence[tuple[int, float]],
    *,
    num_blocks: int,
    span: tuple[float, float],
    worst: frozenset[int] = frozenset(),
) -> str:
    """
    One kind of layer: relative error by block, on a logarithmic scale.

    Args:
        label: For readers that do not see.
        points: Block and error; no block twice.
        num_blocks: Blocks of the model.
        span: Powers of ten, the same for every panel.
        worst: Blocks whose dots stand out.
    """
    left, top, right, bottom = _AREA
    low, high = span

    def x(block: int) -> float:
        return left + (right - left) * (block + 0.5) / max(1, num_blocks)

    def y(error: float) -> float:
        power = math.log10(error) if error > 0 else low
        return bottom - (bottom - top) * (max(low, power) - low) / (high - low)

    path = " ".join(f"{at(x(block))} {at(y(error))}" for block, error in points)
    dots = "".join(f"M{at(x(b))} {at(y(e))}h0" for b, e in points if b not in worst)
    hot = "".join(
        f'<circle class="hot" cx="{at(x(b))}" cy="{at(y(e))}" r="3.2"/>'
        for b, e in points
        if b in worst
    )
    joined = 1 < len(points) <= _MAX_JOINED
    line = f'<path class="line" d="M{path}"/>' if joined else ""
    return (
        f'<svg class="panel" viewBox="0 0 {at(_PANEL[0])} {at(_PANEL[1])}" role="img"'
        f' aria-label="{text(label)}"><use href="#axes"/>{line}'
        f'<path class="dots" d="{dots}"/>{hot}</svg>'
    )


def error_axes(*, num_blocks: int, span: tuple[float, float]) -> str:
    """The grid and its numbers, drawn once and used by every panel."""
    left, top, right, bottom = _AREA
    low, high = span
    first, last = math.ceil(low), math.floor(high)
    step = max(1, -(-(last - first) // 4))
    parts = []
    for power in range(first, last + 1, step):
        y = bottom - (bottom - top) * (power - low) / (high - low)
        parts.append(f'<path class="grid" d="M{at(left)} {at(y)}H{at(right)}"/>')
        parts.append(
            f'<text class="tick end" x="{at(left - 6)}" y="{at(y + 3)}">'
            f"{_power(power)}</text>"
        )
    for block in sorted({0, num_blocks - 1}):
        x = left + (right - left) * (block + 0.5) / max(1, num_blocks)
        place = f'x="{at(x)}" y="{at(bottom + 15)}"'
        parts.append(f'<text class="tick middle" {place}>{block}</text>')
    return (
        '<svg width="0" height="0" class="defs" aria-hidden="true"><defs>'
        f'<g id="axes">{"".join(parts)}</g></defs></svg>'
    )


def _power(power: int) -> str:
    share = 10.0**power
    return f"{share:g}" if -4 < power < 3 else f"1e{power}"  # noqa: PLR2004


def bar(share: float, kind: str = "") -> str:
    """One bar of a list; `share` is its part of the longest."""
    width = 100 * min(1.0, max(0.0, share))
    name = f"bar {kind}".strip()
    return (
        '<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none"'
        ' aria-hidden="true" focusable="false"><rect class="rest" width="100"'
        f' height="8"/><rect class="{name}" width="{at(width)}" height="8"/></svg>'
    )


def stack(shares: Sequence[float]) -> str:
    """Parts of a whole side by side, in the classes `part0`, `part1` ..."""
    parts, x = [], 0.0
    for index, share in enumerate(shares):
        width = 1000 * share
        parts.append(
            f'<rect class="part{index % 6}" x="{at(x)}" width="{at(width)}"'
            ' height="24"/>'
        )
        x += width
    return (
        '<svg class="stack" viewBox="0 0 1000 24" preserveAspectRatio="none"'
        f' aria-hidden="true" focusable="false">{"".join(parts)}</svg>'
    )


def reading_text(reading: Reading, value: float) -> str:
    """A value of a measure as people read it; what is near 1 to a thousandth."""
    if reading.percent:
        return f"{value:.1%}"
    return f"{value:.3f}" if reading.perfect == 1 else number(value)
