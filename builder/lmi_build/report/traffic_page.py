"""A log of requests as a page: where its lengths lie, and what each bound rejects."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lmi_build.report.charts import at
from lmi_build.report.markup import text
from lmi_build.report.page import frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.sizing.lengths import JointLengths
    from lmi_build.sizing.traffic import Choice, LengthSummary
    from lmi_build.traffic.propose import Proposal

# Steps of the heat map for each doubling of a length.
_STEPS = 2
_CELL = 16.0
_LEFT, _BELOW, _ABOVE = 52.0, 34.0, 14.0
_CURVE = (640.0, 260.0)
_FAINTEST = 0.08


def render_traffic(proposal: Proposal) -> str:
    """
    Write the whole page.

    Args:
        proposal: What it shows.

    Returns:
        HTML, to be stored as UTF-8; the same proposal gives the same bytes.
    """
    parts = [_head(proposal), _heat(proposal), _curve(proposal), _lengths(proposal)]
    footer = (
        "Written by lmi-build from counts of lengths; no text of a request was kept."
    )
    return frame("Bounds from traffic", "\n".join(parts), text(footer))


def _head(proposal: Proposal) -> str:
    measures, choice = proposal.measures, proposal.choice
    kind, word = ("good", "even") if measures.even else ("warn", "uneven")
    figures = [
        ("max_input_len", str(choice.max_input_len), "longest prompt, tokens"),
        ("max_output_len", str(choice.max_output_len), "longest answer, tokens"),
        (
            "rejected",
            f"{choice.rejected_share:.3%}",
            f"{choice.rejected:,} of {choice.requests:,} requests",
        ),
    ]
    if proposal.bounds is not None:
        figures += [
            ("max_batch_size", str(proposal.max_batch_size), proposal.batch_from),
            ("max_num_tokens", str(proposal.bounds.max_num_tokens), "in one pass"),
        ]
    cells = "".join(
        f'<div><dt>{text(name)}</dt><dd class="value">{text(value)}</dd>'
        f'<dd class="detail">{text(detail)}</dd></div>'
        for name, value, detail in figures
    )
    return (
        f'<header><span class="badge {kind}">{word} traffic</span>'
        "<h1>Bounds from traffic</h1>"
        f'<p class="lead">{measures.requests:,} requests;'
        f" {measures.padding_share:.0%} of a padded batch would be padding.</p>"
        f'<dl class="figures">{cells}</dl></header>'
    )


def step_of(length: int) -> int:
    """The step of a length: 0 for none, then `_STEPS` for each doubling."""
    return 0 if length < 1 else 1 + math.floor(_STEPS * math.log2(length) + 1e-9)


def binned(joint: JointLengths) -> dict[tuple[int, int], int]:
    """Requests by the steps of their input and output."""
    found: dict[tuple[int, int], int] = {}
    for input_len, output_len, count in joint.cells():
        key = step_of(input_len), step_of(output_len)
        found[key] = found.get(key, 0) + count
    return found


def _heat(proposal: Proposal) -> str:
    cells = binned(proposal.tally.joint)
    choice = proposal.choice
    columns = max(step_of(choice.max_input_len), *(x for x, _ in cells)) + 1
    rows = max(step_of(choice.max_output_len), *(y for _, y in cells)) + 1
    width, height = columns * _CELL, rows * _CELL
    most = math.log1p(max(cells.values()))

    def y_of(step: float) -> float:
        return _ABOVE + height - step * _CELL

    parts = [
        f'<rect class="bar" x="{at(_LEFT + x * _CELL)}" y="{at(y_of(y + 1))}"'
        f' width="{at(_CELL - 1)}" height="{at(_CELL - 1)}" fill-opacity="'
        f'{_FAINTEST + (1 - _FAINTEST) * math.log1p(count) / most:.2f}"/>'
        for (x, y), count in sorted(cells.items())
    ]
    parts += [
        _tick(_LEFT + step * _CELL, _ABOVE + height + 15, step, "middle")
        for step in range(1, columns, 2 * _STEPS)
    ]
    parts += [
        _tick(_LEFT - 6, y_of(step) + 4, step, "end")
        for step in range(1, rows, 2 * _STEPS)
    ]
    right = _LEFT + _place(choice.max_input_len) * _CELL
    top = y_of(_place(choice.max_output_len))
    bottom = _ABOVE + height
    parts += [
        _line("gate", right, top, right, bottom),
        _line("gate", _LEFT, top, right, top),
        _label(_LEFT + width / 2, bottom + 30, "input, tokens", "middle"),
        _label(0, _ABOVE, "output, tokens", "start"),
    ]
    return (
        "<section><h2>Where the requests lie</h2>"
        '<p class="note">Darker is more, on a logarithmic scale. The lines are the'
        " chosen bounds; what lies outside of them is rejected.</p><figure>"
        + _svg(_LEFT + width + 8, bottom + _BELOW, parts, "heat map of lengths")
        + "</figure></section>"
    )


def _place(length: int) -> float:
    """Where a bound lies among the steps."""
    return 1 + _STEPS * math.log2(length + 1) if length > 0 else 1.0


def _curve(proposal: Proposal) -> str:
    points = [c for c in proposal.curve if c.rejected]
    rows = "".join(
        f'<tr><td class="n">{float(c.target):g}</td><td class="n">{c.rejected:,}</td>'
        f'<td class="n">{c.capacity}</td><td class="n">{c.max_input_len}</td>'
        f'<td class="n">{c.max_output_len}</td></tr>'
        for c in proposal.curve
    )
    chart = _curve_chart(points, proposal.choice) if points else ""
    heads = ("Allowed", "Rejected", "Capacity", "max_input_len", "max_output_len")
    head = "".join(f'<th class="n">{name}</th>' for name in heads)
    return (
        "<section><h2>What each capacity rejects</h2>"
        '<p class="note">The least capacity, prompt and answer together, for each'
        f" share.</p>{chart}"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _curve_chart(points: Sequence[Choice], chosen: Choice) -> str:
    width, height = _CURVE
    most = max(c.capacity for c in (*points, chosen)) * 1.05
    low = math.floor(math.log10(min(c.rejected_share for c in points)))

    def x_of(choice: Choice) -> float:
        return _LEFT + (width - _LEFT) * choice.capacity / most

    def y_of(share: float) -> float:
        return _ABOVE + (height - _BELOW - _ABOVE) * math.log10(share) / low

    parts = []
    for power in range(low, 1):
        y = y_of(10.0**power)
        parts += [
            _line("grid", _LEFT, y, width, y),
            _label(_LEFT - 6, y + 4, f"{10.0**power:g}", "end"),
        ]
    way = "L".join(f"{at(x_of(c))} {at(y_of(c.rejected_share))}" for c in points)
    parts.append(f'<path class="line" d="M{way}"/>')
    for choice in points:
        kind = "hot" if choice.target == chosen.target else "dot"
        x, y = x_of(choice), y_of(choice.rejected_share)
        parts.append(f'<circle class="{kind}" cx="{at(x)}" cy="{at(y)}" r="4.5"/>')
    for tenth in range(5):
        capacity = most * tenth / 4
        x = _LEFT + (width - _LEFT) * tenth / 4
        where = "end" if tenth == 4 else "middle"  # noqa: PLR2004 - the last of them
        parts.append(_label(x, height - 18, f"{capacity:.0f}", where))
    parts.append(_label(_LEFT + (width - _LEFT) / 2, height - 3, "capacity", "middle"))
    figure = _svg(width, height, parts, "rejected share against capacity")
    return f"<figure>{figure}</figure>"


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


def _tick(x: float, y: float, step: int, where: str) -> str:
    return _label(x, y, str(2 ** ((step - 1) // _STEPS)), where)


def _label(x: float, y: float, said: str, where: str) -> str:
    return f'<text class="tick {where}" x="{at(x)}" y="{at(y)}">{text(said)}</text>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    ends = zip(("x1", "y1", "x2", "y2"), (x1, y1, x2, y2), strict=True)
    placed = " ".join(f'{name}="{at(value)}"' for name, value in ends)
    return f'<line class="{kind}" {placed}/>'


def _svg(width: float, height: float, parts: Sequence[str], said: str) -> str:
    return (
        f'<svg viewBox="0 0 {at(width)} {at(height)}" role="img"'
        f' aria-label="{text(said)}">{"".join(parts)}</svg>'
    )
