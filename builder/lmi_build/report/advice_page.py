"""An advice as a page: who remains, with their points, and who was removed and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.report.charts import bar
from lmi_build.report.markup import prose, text
from lmi_build.report.page import frame

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmi_build.advice.advisor import Answer, Verdict
    from lmi_build.advice.question import Question
    from lmi_build.advice.rules import Finding


def render_advice(answer: Answer) -> str:
    """
    Write the whole page.

    Args:
        answer: What it shows.

    Returns:
        HTML, to be stored as UTF-8; the same answer gives the same bytes.
    """
    parts = [_head(answer), _candidates(answer), _relaxations(answer), _removed(answer)]
    footer = (
        "Written by lmi-build. Facts are as old as the dates beside them; how much a"
        " point weighs is a judgement, so measure what stands close together."
    )
    title = f"{_subject(answer.question)}: advice"
    return frame(title, "\n".join(part for part in parts if part), text(footer))


def _subject(question: Question) -> str:
    return f"Serving {question.family or 'any model'}"


def _head(answer: Answer) -> str:
    winner = answer.winner
    if winner is None:
        kind, verdict = "bad", "no system grants every wish"
        detail = "The fewest wishes to drop stand below."
    else:
        kind, verdict = "good", _name(winner)
        builds = winner.option.port.builds(answer.question.family)
        detail = (
            f"lmi-build builds for it: backend `{winner.option.port.backend}`."
            if builds
            else f"What to do: {winner.option.system.otherwise}."
        )
    return (
        f'<header><span class="badge {kind}">{text(verdict)}</span>'
        f"<h1>{text(_subject(answer.question))}</h1>"
        f'<p class="lead">{prose(detail)}</p>{_asked(answer.question)}</header>'
    )


def _asked(question: Question) -> str:
    """The question as pairs."""
    pairs = [("Wished", question.said(wish)) for wish in question.wishes]
    ranked = {
        "Goal": question.goal,
        "Traffic": question.traffic,
        "Tail": f"{question.spread:.1f} times the median" if question.spread else "",
        "At one time": f"{question.concurrency} requests"
        if question.concurrency
        else "",
    }
    pairs += [(name, value) for name, value in ranked.items() if value]
    rows = "".join(f"<dt>{text(name)}</dt><dd>{prose(x)}</dd>" for name, x in pairs)
    return f'<dl class="pairs">{rows}</dl>'


def _candidates(answer: Answer) -> str:
    if not answer.candidates:
        return ""
    most = max(1, *(verdict.score for verdict in answer.candidates))
    rows = "".join(
        f'<tr><th scope="row">{text(_name(each))}</th>'
        f'<td class="n">{each.score:+d}</td>'
        f'<td class="w">{bar(each.score / most)}</td>'
        f"<td>{text(each.option.system.life.status)}</td>"
        f'<td class="opt">{text(each.option.system.life.version)}</td></tr>'
        for each in answer.candidates
    )
    told = "".join(_points(each) for each in answer.candidates)
    return (
        "<section><h2>Who remains</h2>"
        '<p class="note">Best first; a difference of a point or two is a hint to'
        " measure both.</p>"
        '<div class="scroll"><table><thead><tr><th>System</th><th class="n">Points</th>'
        '<th class="w"></th><th>Life</th><th class="opt">Newest</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{told}</section>"
    )


def _points(verdict: Verdict) -> str:
    rows = "".join(
        f'<tr><td class="n">{finding.points:+d}</td>{_finding(name, finding)}</tr>'
        for name, finding in verdict.points
    )
    return (
        f"<details><summary>{text(_name(verdict))}: {verdict.score:+d}</summary>"
        '<div class="scroll"><table class="said"><thead><tr><th class="n">Points</th>'
        "<th>Rule</th><th>Why</th><th>Read in</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _finding(name: str, finding: Finding) -> str:
    read = f"{finding.source.text}, {finding.source.date}"
    return (
        f"<td>{text(name)}</td><td>{prose(finding.reason)}</td>"
        f'<td class="soft">{text(read)}</td>'
    )


def _relaxations(answer: Answer) -> str:
    if not answer.relaxations:
        return ""
    items = "".join(
        f"<li>{prose(_words(answer.question, each.wishes))}: then {text(each.winner)}"
        "</li>"
        for each in answer.relaxations
    )
    return (
        "<section><h2>The fewest wishes to drop</h2>"
        f'<ul class="findings">{items}</ul></section>'
    )


def _words(question: Question, wishes: Iterable[str]) -> str:
    return " and ".join(question.said(wish) for wish in wishes)


def _removed(answer: Answer) -> str:
    rows = "".join(
        f'<tr><th scope="row">{text(_name(each))}</th>{_finding(name, finding)}</tr>'
        for each in answer.verdicts
        for name, finding in each.removed
    )
    if not rows:
        return ""
    return (
        "<section><h2>Who was removed</h2>"
        '<div class="scroll"><table class="said"><thead><tr><th>System</th>'
        "<th>Rule</th><th>Why</th><th>Read in</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _name(verdict: Verdict) -> str:
    return f"{verdict.option.system.title} on {verdict.option.port.device}"
