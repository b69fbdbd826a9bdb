"""A plan as a page: its stages with cost and state, and what each device will hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.digest import short
from lmi_build.report.charts import bar
from lmi_build.report.markup import code, figures, prose, text
from lmi_build.report.memory_section import badge, memory_section
from lmi_build.report.page import frame
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmi_build.plan.sizes import SizeReport
    from lmi_build.values.stage import Estimate, Plan, Stage

    # A stage, `cached`, `build`, `rebuild` or `blocked`, and why in a few words.
    Row = tuple[Stage, str, str]

CACHED, BLOCKED = "cached", "blocked"
_STATES = {CACHED: "good", BLOCKED: "bad", "rebuild": "warn"}


def render_plan(plan: Plan, rows: Sequence[Row], sizes: Sequence[SizeReport]) -> str:
    """
    Write the whole page.

    Args:
        plan: What would be done.
        rows: Every stage of it in order, with its state and the reason.
        sizes: Of each artifact whose memory can be counted.

    Returns:
        HTML, to be stored as UTF-8; the same plan gives the same bytes.

    Raises:
        ToolMissing: `report.no-plots`.
    """
    parts = [_head(plan, rows, sizes), _stages(rows), _notes(rows)]
    parts += [
        f"<section><h2>{text(report.name)} {badge(report)}</h2></section>"
        f"{memory_section(report)}"
        for report in sizes
    ]
    footer = (
        "Written by lmi-build before anything was built. Sizes of stages are estimates"
        " of the providers; keys are exact."
    )
    return frame(f"{_name(plan)}: plan", "\n".join(filter(None, parts)), text(footer))


def _name(plan: Plan) -> str:
    names = [artifact.name for artifact in plan.artifacts]
    return names[0] if len(names) == 1 else f"{len(names)} artifacts"


def _head(plan: Plan, rows: Sequence[Row], sizes: Sequence[SizeReport]) -> str:
    todo = [stage.estimate for stage, state, _ in rows if state != CACHED]
    kind, said = "good", "nothing to do"
    if todo:
        kind, said = "", f"{len(todo)} of {len(rows)} stages to build"
    if any(state == BLOCKED for _, state, _ in rows):
        kind, said = "bad", "cannot run here"
    names = ", ".join(artifact.name for artifact in plan.artifacts)
    cells = figures(_figures(rows, todo, sizes))
    return (
        f'<header><span class="badge {kind}">{said}</span><h1>{text(_name(plan))}</h1>'
        f'<p class="lead">{text(names)}</p>{cells}</header>'
    )


def _figures(
    rows: Sequence[Row], todo: Sequence[Estimate], sizes: Sequence[SizeReport]
) -> Iterator[tuple[str, str, str]]:
    found = len(rows) - len(todo)
    yield "Found again", f"{found} of {len(rows)}", "stages whose key the store holds"
    disk = sum(each.disk_bytes for each in todo)
    scratch = max((each.scratch_bytes for each in todo), default=0)
    ram = max((each.ram_bytes for each in todo), default=0)
    load = sum(each.download_bytes for each in todo)
    yield "To download", format_bytes(load), "of the stages to build"
    yield "Disk", format_bytes(disk + scratch), "kept, with the most beside it"
    yield "Memory", format_bytes(ram), "of the stage that needs most"
    for report in sizes[:1]:
        if report.fit.margin_bytes is not None:
            worst = report.fit.margin_bytes[0]
            name = "Left while serving" if worst >= 0 else "Missing while serving"
            yield name, format_bytes(abs(worst)), "of each device, at worst"


def _stages(rows: Sequence[Row]) -> str:
    most = max((stage.estimate.ram_bytes for stage, _, _ in rows), default=0) or 1
    body = "".join(_stage(row, most) for row in rows)
    return (
        '<section><h2>Stages</h2><p class="note">A stage is named by its inputs before'
        " it runs. What was built is found again; what is built anew says which field"
        ' changed.</p><div class="scroll"><table><thead><tr><th scope="col">stage</th>'
        '<th scope="col">state</th><th scope="col" class="n">memory</th>'
        '<th scope="col" class="opt"></th><th scope="col" class="n">disk</th>'
        '<th scope="col" class="n opt">beside it</th>'
        '<th scope="col" class="n opt">download</th>'
        f"</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _stage(row: Row, most: int) -> str:
    stage, state, why = row
    cost = stage.estimate
    reason = f'<small class="soft">{prose(why)}</small>' if why else ""
    badge = f'<span class="badge {_STATES.get(state, "")}">{state}</span>'
    share = cost.ram_bytes / most
    return (
        f'<tr><th scope="row">{text(stage.name)}{reason}'
        f'<small class="soft">{code(short(stage.key))}</small></th><td>{badge}</td>'
        f'<td class="n">{format_bytes(cost.ram_bytes)}</td>'
        f'<td class="w opt">{bar(share, "quiet" if state == CACHED else "")}</td>'
        f'<td class="n">{format_bytes(cost.disk_bytes)}</td>'
        f'<td class="n opt">{format_bytes(cost.scratch_bytes)}</td>'
        f'<td class="n opt">{format_bytes(cost.download_bytes)}</td></tr>'
    )


def _notes(rows: Sequence[Row]) -> str:
    """What the providers say of stages that are still to build."""
    items = []
    for stage, state, _ in rows:
        if state == BLOCKED and stage.blocker is not None:
            items.append((stage.blocker.code, stage.name, stage.blocker.message))
        if state != CACHED:
            items += [(note.code, stage.name, note.message) for note in stage.notes]
    if not items:
        return ""
    made = "".join(
        f"<li>{code(named)} {text(where)}: {prose(said)}</li>"
        for named, where, said in items
    )
    return f'<section><h2>Notes</h2><ul class="findings">{made}</ul></section>'
