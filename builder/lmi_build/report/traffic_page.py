"""A log of requests as a page: where its lengths lie, and what each bound rejects."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lmi_build.report.markup import figures, text
from lmi_build.report.page import frame
from lmi_build.report.plots import NARROW, axis, figure, ticks, values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.sizing.lengths import JointLengths
    from lmi_build.sizing.traffic import Choice, LengthSummary
    from lmi_build.traffic.propose import Proposal

# Steps of the heat map for each doubling of a length.
_STEPS = 2
# The largest side of a cell, in pixels.
_CELL = 22.0
_MARGINS = (56, 14, 34, 46)
_HEIGHT = 280
_FAINTEST = 0.08
_QUANTITY = {"type": "quantitative"}
# A title above its axis, level.
_ABOVE = {"titleAngle": 0, "titleAlign": "left", "titleX": -50, "titleY": -14}


def render_traffic(proposal: Proposal) -> str:
    """
    Write the whole page.

    Args:
        proposal: What it shows.

    Returns:
        HTML, to be stored as UTF-8; the same proposal gives the same bytes.

    Raises:
        ToolMissing: `report.no-plots`.
    """
    parts = [_head(proposal), _heat(proposal), _curve(proposal), _lengths(proposal)]
    footer = (
        "Written by lmi-build from counts of lengths; no text of a request was kept."
    )
    return frame("Bounds from traffic", "\n".join(parts), text(footer))


def _head(proposal: Proposal) -> str:
    measures, choice = proposal.measures, proposal.choice
    kind, word = ("good", "even") if measures.even else ("warn", "uneven")
    cells = [
        ("max_input_len", str(choice.max_input_len), "longest prompt, tokens"),
        ("max_output_len", str(choice.max_output_len), "longest answer, tokens"),
        (
            "rejected",
            f"{choice.rejected_share:.3%}",
            f"{choice.rejected:,} of {choice.requests:,} requests",
        ),
    ]
    if proposal.bounds is not None:
        cells += [
            ("max_batch_size", str(proposal.max_batch_size), proposal.batch_from),
            ("max_num_tokens", str(proposal.bounds.max_num_tokens), "in one pass"),
        ]
    return (
        f'<header><span class="badge {kind}">{word} traffic</span>'
        "<h1>Bounds from traffic</h1>"
        f'<p class="lead">{measures.requests:,} requests;'
        f" {measures.padding_share:.0%} of a padded batch would be padding.</p>"
        f"{figures(cells)}</header>"
    )


def step_of(length: int) -> int:
    """
    The step of a length: 0 for none, then `_STEPS` for each doubling.

    A step ends at its longest length, so that a bound of a power of two does not cut
    what it lets through.
    """
    return 0 if length < 1 else 1 + math.ceil(_STEPS * math.log2(length) - 1e-9)


def binned(joint: JointLengths) -> dict[tuple[int, int], int]:
    """Requests by the steps of their input and output."""
    found: dict[tuple[int, int], int] = {}
    for input_len, output_len, count in joint.cells():
        key = step_of(input_len), step_of(output_len)
        found[key] = found.get(key, 0) + count
    return found


def _heat(proposal: Proposal) -> str:
    cells = binned(proposal.tally.joint)
    chart = figure(
        lambda width: heat_spec(cells, proposal.choice, width), "heat map of lengths"
    )
    return (
        "<section><h2>Where the requests lie</h2>"
        '<p class="note">Darker is more, on a logarithmic scale. The lines are the'
        " chosen bounds; what lies outside of them is rejected.</p>"
        f"{chart}</section>"
    )


def heat_spec(
    cells: Mapping[tuple[int, int], int], choice: Choice, width: int
) -> dict[str, Any]:
    """
    Requests by the steps of their lengths, with the chosen bounds.

    Args:
        cells: From `binned`.
        choice: The bounds.
        width: Of the chart, in pixels.
    """
    columns = max(step_of(choice.max_input_len), *(x for x, _ in cells)) + 1
    rows = max(step_of(choice.max_output_len), *(y for _, y in cells)) + 1
    most = math.log1p(max(cells.values()))
    rects = [
        {
            "x": x,
            "right": x + 1,
            "y": y,
            "top": y + 1,
            "much": round(_FAINTEST + (1 - _FAINTEST) * math.log1p(count) / most, 2),
        }
        for (x, y), count in sorted(cells.items())
    ]
    left, right, top, bottom = _MARGINS
    # Cells are square, but a few requests do not make a page of them.
    side = min(_CELL, (width - left - right) / columns)
    right = int(width - left - side * columns)
    across = _steps(columns, "input, tokens", width)
    up = _steps(rows, "output, tokens", width)
    up["axis"] |= _ABOVE
    edge = {
        "right": round(place(choice.max_input_len), 3),
        "top": round(place(choice.max_output_len), 3),
        "none": 0,
    }
    layers = [
        {
            "data": values(rects),
            "mark": {
                "type": "rect",
                "fill": "var(--accent)",
                "stroke": "var(--ground)",
            },
            "encoding": {
                "x": {"field": "x", **across},
                "x2": {"field": "right"},
                "y": {"field": "y", **up},
                "y2": {"field": "top"},
                "fillOpacity": {"field": "much", "type": "quantitative", "scale": None},
            },
        },
        _edge(edge, x="right", y="none", y2="top"),
        _edge(edge, x="none", y="top", x2="right"),
    ]
    return {
        "spec": {"layer": layers},
        "height": round(side * rows) + top + bottom,
        "margins": (left, right, top, bottom),
    }


def _edge(row: dict[str, float], **at: str) -> dict[str, Any]:
    """One side of the chosen bounds."""
    return {
        "data": values([row]),
        "mark": {"type": "rule", "stroke": "var(--bad)", "strokeWidth": 2.5},
        "encoding": {
            name: {"field": key} | ({} if name.endswith("2") else _QUANTITY)
            for name, key in at.items()
        },
    }


def _steps(count: int, title: str, width: int) -> dict[str, Any]:
    """A scale of steps whose numbers are powers of two."""
    every = _STEPS * (2 if width > NARROW else 4)
    return {
        **_QUANTITY,
        "scale": {"domain": [0, count], "nice": False},
        "axis": axis(
            title,
            grid=False,
            values=list(range(2, count + 1, every)),
            labelExpr=f"format(pow(2, (datum.value - 2) / {_STEPS}), ',')",
        ),
    }


def place(length: int) -> float:
    """Where a bound lies among the steps: a power of two at the end of its own."""
    return 2 + _STEPS * math.log2(length) if length > 0 else 1.0


def _curve(proposal: Proposal) -> str:
    points = [c for c in proposal.curve if c.rejected]
    rows = "".join(
        f'<tr><td class="n">{float(c.target):g}</td><td class="n">{c.rejected:,}</td>'
        f'<td class="n">{c.capacity}</td><td class="n">{c.max_input_len}</td>'
        f'<td class="n">{c.max_output_len}</td></tr>'
        for c in proposal.curve
    )
    chart = ""
    if points:
        chart = figure(
            lambda width: curve_spec(points, proposal.choice, width),
            "rejected share against capacity",
        )
    heads = ("Allowed", "Rejected", "Capacity", "max_input_len", "max_output_len")
    head = "".join(f'<th class="n">{name}</th>' for name in heads)
    return (
        "<section><h2>What each capacity rejects</h2>"
        '<p class="note">The least capacity, prompt and answer together, for each'
        f" share.</p>{chart}"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _curve_axes(points: Sequence[Choice], chosen: Choice, width: int) -> dict[str, Any]:
    """Capacity to the right, the rejected share upwards."""
    most = max(choice.capacity for choice in (*points, chosen)) * 1.05
    low = math.floor(math.log10(min(choice.rejected_share for choice in points)))
    return {
        "x": {
            "field": "capacity",
            "scale": {"domain": [0, round(most)], "nice": False},
            "axis": axis("capacity, tokens", format=",d", tickCount=ticks(width)),
            **_QUANTITY,
        },
        "y": {
            "field": "share",
            "scale": {"type": "log", "domain": [10.0**low, 1], "nice": False},
            "axis": axis(
                "rejected",
                format="~%",
                values=[10.0**power for power in range(low, 1)],
            )
            | _ABOVE,
            **_QUANTITY,
        },
    }


def curve_spec(points: Sequence[Choice], chosen: Choice, width: int) -> dict[str, Any]:
    """
    Rejected share against capacity, on a logarithmic scale.

    Args:
        points: The curve, without what rejects nothing.
        chosen: The one that was taken.
        width: Of the chart, in pixels.
    """
    rows = [
        {
            "capacity": choice.capacity,
            "share": float(f"{choice.rejected_share:.4g}"),
            "chosen": choice.target == chosen.target,
        }
        for choice in points
    ]
    at = _curve_axes(points, chosen, width)
    layers = [
        {
            "data": values(rows),
            "mark": {"type": "line", "stroke": "var(--accent)", "strokeWidth": 1.2},
            "encoding": at,
        },
        {
            "data": values([row for row in rows if not row["chosen"]]),
            "mark": {"type": "point", "filled": True, "fill": "var(--accent)"},
            "encoding": at,
        },
        {
            "data": values([row for row in rows if row["chosen"]]),
            "mark": {
                "type": "point",
                "filled": True,
                "fill": "var(--ground)",
                "stroke": "var(--bad)",
                "strokeWidth": 2.5,
                "size": 130,
            },
            "encoding": at,
        },
    ]
    return {"spec": {"layer": layers}, "height": _HEIGHT, "margins": _MARGINS}


def _lengths(proposal: Proposal) -> str:
    measures = proposal.measures
    percents = "".join(f'<th class="n">p{p:g}</th>' for p in measures.input.percentiles)
    rows = "".join(
        _length_row(name, summary)
        for name, summary in (
            ("input", measures.input),
            ("output", measures.output),
            ("together", measures.total),
        )
    )
    return (
        '<section><h2>Lengths</h2><div class="scroll"><table><thead><tr><th></th>'
        f'<th class="n">Mean</th><th class="n">CV</th>{percents}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _length_row(name: str, summary: LengthSummary) -> str:
    values = "".join(f'<td class="n">{v}</td>' for v in summary.percentiles.values())
    return (
        f'<tr><th scope="row">{name}</th><td class="n">{summary.mean:.1f}</td>'
        f'<td class="n">{summary.cv:.2f}</td>{values}</tr>'
    )
