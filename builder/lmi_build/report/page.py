"""
The report page: one HTML file without scripts, fonts or images from elsewhere.

Pure: the same data gives the same bytes. Every name goes through `markup`, because
names come from models and recipes. Charts are pictures of tables on the same page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.report import charts
from lmi_build.report.layers_section import bits_section, errors_section
from lmi_build.report.markup import code, text
from lmi_build.report.style import STYLE
from lmi_build.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmi_build.report.data import Pairs, Reading, ReportData, StageCost

_CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"


def render_report(data: ReportData) -> str:
    """
    Write the whole page.

    Args:
        data: What it shows.

    Returns:
        HTML, to be stored as UTF-8.
    """
    parts = [
        _head(data),
        _quality(data),
        errors_section(data.layers) if data.layers else "",
        bits_section(data.layers) if data.layers else "",
        _sizes(data),
        _stages(data.stages),
        _provenance(data),
    ]
    body = "\n".join(part for part in parts if part)
    footer = (
        f"Written by lmi-build for manifest {code(data.identity)}. The numbers are"
        f" those of the files {code('manifest.json')}, {code('layers.json')} and"
        f" {code('verify.json')}."
    )
    return frame(f"{data.name}: build report", body, footer)


def frame(title: str, body: str, footer: str) -> str:
    """
    A whole page around its parts; nothing in it may load anything.

    Args:
        title: Plain text.
        body: Markup.
        footer: Markup.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{STYLE}\n</style>"
        f"</head>\n<body><main>\n{body}\n<footer><p>{footer}"
        "</p></footer>\n</main></body></html>\n"
    )


def _head(data: ReportData) -> str:
    kind, verdict = _verdict(data.readings)
    return (
        f'<header><span class="badge {kind}">{verdict}</span>\n'
        f'<h1>{text(data.name)}</h1>\n<p class="lead">{text(data.summary)}</p>\n'
        f'<dl class="figures">{"".join(_figures(data))}</dl></header>'
    )


def _verdict(readings: tuple[Reading, ...]) -> tuple[str, str]:
    if not readings:
        return "", "Not verified"
    judged = [reading for reading in readings if reading.met is not None]
    missed = sum(not reading.met for reading in judged)
    if not judged:
        return "", "Verified, no quality gate set"
    if missed:
        return "bad", f"{missed} of {len(judged)} quality gates missed"
    gates = "gates" if len(judged) > 1 else "gate"
    if any(reading.weak for reading in judged):
        return "warn", f"{len(judged)} quality {gates} met, on weak evidence"
    return "good", f"{len(judged)} quality {gates} met"


def _figures(data: ReportData) -> Iterable[str]:
    """The four numbers that most readers came for."""
    for reading in data.readings[:2]:
        span = ""
        if reading.interval:
            low = charts.reading_text(reading, reading.interval.low)
            high = charts.reading_text(reading, reading.interval.high)
            span = f"{low} to {high}"
        value = charts.reading_text(reading, reading.value)
        detail = ", ".join(part for part in (reading.unit, span) if part)
        yield _figure(reading.label, value, detail)
    if data.layers:
        layers = data.layers
        yield _figure(
            "Bits per weight",
            f"{layers.bits_per_weight:.2f}",
            f"the whole checkpoint, {len(layers.layers)} linears quantized",
        )
    if len(data.sizes) > 1:
        (_, before), (label, after) = data.sizes[0], data.sizes[-1]
        share = f"{after / before:.0%} of the source" if before else ""
        yield _figure(f"Size of the {label.lower()}", format_bytes(after), share)


def _figure(label: str, value: str, detail: str) -> str:
    return (
        f'<div><dt>{text(label)}</dt><dd class="value">{text(value)}</dd>'
        f'<dd class="detail">{text(detail)}</dd></div>'
    )


def _quality(data: ReportData) -> str:
    if not data.readings:
        return ""
    cards = "\n".join(_reading(reading) for reading in data.readings)
    answers = "".join(
        f'<div class="card"><h3>{text(answer.prompt)}</h3>'
        f"<blockquote>{text(answer.text)}</blockquote></div>"
        for answer in data.answers
    )
    said = f"<details><summary>What it answered</summary>{answers}</details>"
    return (
        '<section aria-labelledby="quality"><h2 id="quality">Quality</h2>\n'
        '<p class="note">The engine against the float model, token by token.'
        f" {text(data.evidence)} The dot is what was measured and decides; the band is"
        " where the value of the whole text lies; the line is the gate.</p>\n"
        f'<div class="readings">{cards}</div>{said if data.answers else ""}</section>'
    )


def _reading(reading: Reading) -> str:
    value = charts.reading_text(reading, reading.value)
    small = [text(reading.unit)] if reading.unit else []
    if reading.interval:
        low = charts.reading_text(reading, reading.interval.low)
        high = charts.reading_text(reading, reading.interval.high)
        small.append(f"{low} to {high}")
    perfect = charts.reading_text(reading, reading.perfect)
    gate = ""
    if reading.allowed is not None:
        word = "at least" if reading.allowed < reading.perfect else "at most"
        allowed = charts.reading_text(reading, reading.allowed)
        gate = f"gate: {word} {allowed}"
    kind, verdict = {
        None: ("", "no gate"),
        True: ("good", "met"),
        False: ("bad", "missed"),
    }[reading.met]
    if reading.weak:
        kind, verdict = "warn" if reading.met else "bad", f"{verdict}, weak evidence"
    return (
        f'<article class="card reading"><h3>{text(reading.label)}</h3>'
        f'<span class="badge {kind}">{verdict}</span>'
        f'<div class="value">{value} <small>{", ".join(small)}</small></div>'
        f"{charts.interval_chart(reading)}"
        f'<div class="ends"><span>no loss: {perfect}</span><span>{gate}</span></div>'
        f"<p>{text(reading.meaning)}</p></article>"
    )


def _sizes(data: ReportData) -> str:
    if not data.sizes:
        return ""
    longest = max(size for _, size in data.sizes) or 1
    first = data.sizes[0][1] or 1
    rows = "".join(
        f'<tr><th scope="row">{text(label)}</th><td class="n">{format_bytes(size)}</td>'
        f'<td class="n opt">{size / first:.0%}</td>'
        f'<td class="w">{charts.bar(size / longest, "quiet" if index == 0 else "")}'
        "</td></tr>"
        for index, (label, size) in enumerate(data.sizes)
    )
    return (
        '<section aria-labelledby="size"><h2 id="size">Size on disk</h2>'
        '<div class="scroll"><table><thead><tr><th scope="col"></th>'
        '<th scope="col" class="n">bytes</th><th scope="col" class="n opt">of the'
        ' source</th><th scope="col"><span class="soft"></span></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _stages(stages: tuple[StageCost, ...]) -> str:
    if not stages:
        return ""
    longest = max(stage.seconds for stage in stages) or 1
    states = {None: "", True: "found", False: "built"}
    rows = "".join(
        f'<tr><th scope="row">{text(stage.kind)}</th>'
        f'<td class="n">{format_seconds(stage.seconds)}</td>'
        f'<td class="n">{format_seconds(stage.cpu_seconds)}</td>'
        f'<td class="n">{format_bytes(stage.peak_rss_bytes)}</td>'
        f'<td class="n opt">{format_bytes(stage.out_bytes)}</td>'
        f'<td class="opt">{states[stage.cached]}</td>'
        f'<td class="w">{charts.bar(stage.seconds / longest)}</td></tr>'
        for stage in stages
    )
    total = sum(stage.seconds for stage in stages)
    return (
        '<section aria-labelledby="time"><h2 id="time">Time and memory</h2>'
        f'<p class="note">{format_seconds(total)} in all when every stage is built; a'
        " stage that is found again costs nothing.</p>"
        '<div class="scroll"><table><thead><tr><th scope="col">stage</th>'
        '<th scope="col" class="n">time</th><th scope="col" class="n">CPU</th>'
        '<th scope="col" class="n">peak memory</th>'
        '<th scope="col" class="n opt">result</th><th scope="col" class="opt">this'
        f' build</th><th scope="col"></th></tr></thead><tbody>{rows}</tbody></table>'
        "</div></section>"
    )


def _provenance(data: ReportData) -> str:
    facts = _pairs(data.facts, plain=True)
    tools = _pairs(data.tools)
    digests = _pairs(data.digests)
    return (
        '<section aria-labelledby="made"><h2 id="made">How it was made</h2>'
        f"{facts}<details><summary>Tools and versions</summary>{tools}</details>"
        f"<details><summary>Digests</summary>{digests}</details></section>"
    )


def _pairs(pairs: Pairs, *, plain: bool = False) -> str:
    rows = "".join(
        f"<dt>{text(name)}</dt><dd>{text(value) if plain else code(value)}</dd>"
        for name, value in pairs
    )
    return f'<dl class="pairs">{rows}</dl>'
