"""The page's part about layers: error by block and kind, and where the bits go."""

from __future__ import annotations

import re
import statistics
from typing import TYPE_CHECKING

from lmi_build.report import charts
from lmi_build.report.markup import code, number, text
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.checkpoint.layers import Layer, Layers

    Kinds = Mapping[str, Mapping[int, Layer]]

_NUM_WORST = 10
# A page of more kinds or more cells than these is no longer read by anyone.
_MAX_PANELS = 24
_MAX_CELLS = 4000
_NUMBERED = re.compile(r"(?P<before>(?:[^.]+\.)*?)(?P<block>\d+)\.(?P<rest>.+)\Z")
# Parts of names in the order in which a token meets them; what has none comes last.
_ORDER = ("q_proj", "k_proj", "v_proj", "qkv", "query", "o_proj", "attn", "gate", "up")
_EXPERT = re.compile(r"\bexperts\.\d+\.")


def place(name: str) -> tuple[int, str]:
    """
    The block of a layer and what it is in its block.

    An expert's number is dropped, so that one kind stands for all experts. A layer
    outside the blocks is of block -1.
    """
    match = _NUMBERED.match(name)
    if match is None:
        return -1, name
    return int(match["block"]), _EXPERT.sub("experts.*.", match["rest"])


def _order(kind: str) -> tuple[int, str]:
    """Attention before the feed-forward part, as a token goes through them."""
    for rank, part in enumerate(_ORDER):
        if part in kind.rpartition(".")[2] or (part == "attn" and part in kind):
            return rank, kind
    return len(_ORDER), kind


def by_kind(layers: Sequence[Layer]) -> Kinds:
    """Kind to block to its layer of largest error; kinds in the order of a block."""
    found: dict[str, dict[int, Layer]] = {}
    for layer in layers:
        if layer.error is None:
            continue
        block, kind = place(layer.name)
        row = found.setdefault(kind, {})
        if block not in row or (row[block].error or 0.0) < layer.error:
            row[block] = layer
    return {
        kind: dict(sorted(found[kind].items())) for kind in sorted(found, key=_order)
    }


def errors_section(layers: Layers) -> str:
    """Error per layer: a panel for each kind, the worst by name, all as a table."""
    kinds = by_kind(layers.layers)
    if not kinds:
        return ""
    worst = layers.worst(_NUM_WORST)
    median, num = number(layers.median_error or 0.0), len(layers.layers)
    return (
        '<section aria-labelledby="errors"><h2 id="errors">Error per layer</h2>\n'
        '<p class="note">How much of a layer\'s output is lost, as a share of its'
        " power: each dot is a block, counted from left to right, on a logarithmic"
        f" scale. The median of {num} layers is {median}; the {len(worst)} that"
        " lose most are ringed. What stands far out is worth a name in"
        " <code>quantize.ignore</code>.</p>\n"
        f"{_panels(kinds, worst)}{_worst(layers, worst)}{_matrix(kinds)}"
        f"{_coverage(layers)}</section>"
    )


def _panels(kinds: Kinds, worst: Sequence[Layer]) -> str:
    named = {layer.name for layer in worst}
    errors = [layer.error or 0.0 for row in kinds.values() for layer in row.values()]
    span = charts.decades(errors)
    num_blocks = 1 + max(max(row) for row in kinds.values())
    figures = []
    for kind, row in list(kinds.items())[:_MAX_PANELS]:
        points = [(block, layer.error or 0.0) for block, layer in row.items()]
        values = [error for _, error in points]
        hot = frozenset(block for block, layer in row.items() if layer.name in named)
        label = f"{kind}: median {number(statistics.median(values))}"
        figures.append(
            f"<figure><figcaption>{code(kind)}<span>median"
            f" {number(statistics.median(values))}</span></figcaption>"
            + charts.error_panel(
                label, points, num_blocks=num_blocks, span=span, worst=hot
            )
            + "</figure>"
        )
    return (
        f"{charts.error_axes(num_blocks=num_blocks, span=span)}"
        f'<div class="panels">{"".join(figures)}</div>\n'
    )


def _worst(layers: Layers, worst: Sequence[Layer]) -> str:
    largest = (worst[0].error if worst else None) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{code(layer.name)}</th>'
        f'<td class="n">{number(layer.error or 0.0)}</td>'
        f'<td class="n opt">{layers.share(layer):.1%}</td>'
        f'<td class="n opt">{layer.bits}</td>'
        f'<td class="w opt">{charts.bar((layer.error or 0.0) / largest)}</td></tr>'
        for layer in worst
    )
    return (
        '<div class="scroll"><table><caption>The layers that lose most</caption>'
        '<thead><tr><th scope="col">layer</th><th scope="col" class="n">error</th>'
        '<th scope="col" class="n opt">of all errors</th>'
        '<th scope="col" class="n opt">bits</th><th scope="col" class="opt"></th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>\n"
    )


def _matrix(kinds: Kinds) -> str:
    """Every layer as a number: blocks down, kinds across."""
    blocks = sorted({block for row in kinds.values() for block in row})
    if len(blocks) * len(kinds) > _MAX_CELLS:
        return f'<p class="note">All of them stand in {code("layers.json")}.</p>'
    head = "".join(f'<th scope="col" class="n">{text(kind)}</th>' for kind in kinds)
    rows = []
    for block in blocks:
        cells = "".join(
            f'<td class="n">{number(row[block].error or 0.0)}</td>'
            if block in row
            else "<td></td>"
            for row in kinds.values()
        )
        name = "outside" if block < 0 else str(block)
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    worst = " (of experts, the worst)" if any("*" in kind for kind in kinds) else ""
    return (
        "<details><summary>Every layer as a number</summary>"
        '<div class="scroll"><table class="matrix"><caption>Relative error by block'
        f' and kind{worst}</caption><thead><tr><th scope="col">block</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div></details>\n"
    )


def _coverage(layers: Layers) -> str:
    """How much calibration text the layers saw, and who saw too little."""
    seen = [layer.tokens for layer in layers.layers if layer.tokens is not None]
    if not seen:
        return ""
    least = min(seen)
    same = least == max(seen)
    says = (
        f"Every layer saw {least:,} tokens."
        if same
        else f"Layers saw between {least:,} and {max(seen):,} tokens."
    )
    found = "".join(f"<li>{text(finding)}</li>" for finding in layers.findings)
    listed = f'<ul class="findings">{found}</ul>' if found else ""
    return (
        '<div class="card"><h3>Calibration text</h3>'
        f'<p class="note">{says}</p>{listed}</div>'
    )


def bits_section(layers: Layers) -> str:
    """Bits per weight by kind of tensor, with everything that a weight needs."""
    total = sum(item.num_bytes for item in layers.classes) or 1
    chart = charts.stack([item.num_bytes / total for item in layers.classes])
    rows = "".join(
        f'<tr><th scope="row"><span class="key"><svg viewBox="0 0 10 10" aria-hidden='
        f'"true" focusable="false"><rect class="part{index % 6}" width="10" height="10"'
        f' rx="3"/></svg></span>{text(item.kind)}</th>'
        f'<td class="n opt">{item.num_tensors:,}</td>'
        f'<td class="n opt">{_count(item.num_weights)}</td>'
        f'<td class="n">{item.bits_per_weight:.2f}</td>'
        f'<td class="n">{format_bytes(item.num_bytes)}</td>'
        f'<td class="n opt">{item.num_bytes / total:.1%}</td></tr>'
        for index, item in enumerate(layers.classes)
    )
    weights = sum(item.num_weights for item in layers.classes)
    return (
        '<section aria-labelledby="bits"><h2 id="bits">Bits per weight</h2>\n'
        f'<p class="note">{layers.bits_per_weight:.2f} bits on average over all'
        f" {_count(weights)} weights of the checkpoint; scales, zero points and group"
        f" indices are counted in.</p>{chart}"
        '<div class="scroll"><table><thead><tr><th scope="col">tensors</th>'
        '<th scope="col" class="n opt">number</th><th scope="col" class="n opt">weights'
        '</th><th scope="col" class="n">bits each</th><th scope="col" class="n">bytes'
        '</th><th scope="col" class="n opt">share</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _count(value: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)
