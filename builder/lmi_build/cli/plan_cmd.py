"""`validate`, `plan` and `why`: everything that only looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmi_build import api
from lmi_build.cli.catalog_option import knows_catalog
from lmi_build.cli.options import State, with_common_options, with_lock_options
from lmi_build.cli.page_option import need_plots, with_page, write_page
from lmi_build.cli.render import data, data_line, say, style, table
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.api import StageOutlook
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.stage import Plan

RECIPE = click.argument("recipe", type=click.Path(path_type=Path))
_MARKS = {"cached": "=", "build": "+", "rebuild": "~", "blocked": "!"}
_COLORS = {"cached": "green", "build": "cyan", "rebuild": "yellow", "blocked": "red"}
# Status of `plan --exit-code` when there is something to build.
_WORK_TO_DO = 10


@click.command()
@RECIPE
@knows_catalog
@with_common_options
@click.pass_obj
def validate(state: State, recipe: Path) -> None:
    """
    Check a recipe; every problem at once.

    What needs the model's sizes is checked too when they are at hand: a local model,
    or one that was planned before. The network is never used.
    """
    recipes = api.load_recipe(recipe, overrides=state.overrides)
    _refuse_instances(recipes)
    checked = api.check_offline(recipes, state.settings())
    names = [item.name for item in recipes]
    if state.output != "text":
        data({"ok": True, "recipes": names, "model_checked": checked})
        return
    word = "recipe" if len(names) == 1 else "recipes"
    say(state, f"{recipe}: {len(names)} valid {word}: {', '.join(names)}")
    if not checked:
        say(state, "note: the model's sizes are not known yet; `plan` checks them too")


def _refuse_instances(recipes: Sequence[Recipe]) -> None:
    """Hold the instances that job sections name against what SageMaker takes."""
    if all(recipe.job is None for recipe in recipes):
        return
    from lmi_build.errors import RecipeInvalid
    from lmi_build.jobs.machines import named_problems

    problems = [problem for recipe in recipes for problem in named_problems(recipe)]
    if problems:
        raise RecipeInvalid(tuple(dict.fromkeys(problems)))


@click.command()
@RECIPE
@click.option(
    "--out", type=click.Path(path_type=Path), help="Save the plan for `build --plan`."
)
@with_lock_options
@click.option(
    "--exit-code", "want_status", is_flag=True, help="Exit with 10 if there is work."
)
@click.option(
    "--rehearse",
    is_flag=True,
    help="Plan what `build --rehearse` would do: no stage needs another machine.",
)
@with_page
@knows_catalog
@with_common_options
@click.pass_obj
def plan(
    state: State,
    /,
    *,
    recipe: Path,
    out: Path | None,
    want_status: bool,
    rehearse: bool,
    page: Path | None,
) -> int:
    """Show what a build would do, and what it would cost."""
    from lmi_build.sizes import plan_sizes, size_lines

    need_plots(page)
    state.rehearse = rehearse
    settings = state.settings()
    recipes = api.load_recipe(recipe, overrides=state.overrides)
    facts = api.resolve(recipes, settings)
    planned = api.make_plan(recipes, settings, facts=facts)
    outlook = api.outlook(planned, settings)
    reports = plan_sizes(recipes, facts)
    sizes = {item.name: size_lines(reports.get(item.name)) for item in recipes}
    if out is not None:
        from lmi_build.plan.saved import plan_to_json
        from lmi_build.store.files import explain_output_error, write_atomic

        try:
            write_atomic(out, json.dumps(plan_to_json(planned), indent=1).encode())
        except OSError as error:
            raise explain_output_error(
                error, "saving the plan", out, option="--out FILE"
            ) from error
    if page is not None:
        from lmi_build.report.plan_page import render_plan

        rows = [(item.stage, item.status, _reason(item)) for item in outlook]
        found = tuple(reports.values())
        write_page(state, page, render_plan(planned, rows, found))
    if state.output == "text":
        click.echo(_plan_text(state, planned, outlook))
        for name, lines in sizes.items():
            click.echo(f"\n{name}: " + "\n  ".join(lines))
    else:
        data({**_plan_document(planned, outlook), "sizes": sizes})
    work = any(item.status != "cached" for item in outlook)
    return _WORK_TO_DO if want_status and work else 0


def _plan_text(state: State, planned: Plan, outlook: Sequence[StageOutlook]) -> str:
    lines = []
    width = max(len(item.stage.name) for item in outlook)
    for item in outlook:
        mark = style(state, _MARKS[item.status], fg=_COLORS[item.status], bold=True)
        lines.append(f"{mark} {item.stage.name.ljust(width)}  {_why_line(item)}")
    todo = [item.stage for item in outlook if item.status != "cached"]
    for stage in todo:
        for note in stage.notes:
            word = "note" if note.level == "info" else note.level
            lines.append(f"\n{word}[{note.code}]: {stage.name}: {note.message}")
    if todo:
        cost = [stage.estimate for stage in todo]
        disk = sum(e.disk_bytes for e in cost) + max(e.scratch_bytes for e in cost)
        lines.append(
            f"\ndownload {format_bytes(sum(e.download_bytes for e in cost))},"
            f" disk {format_bytes(disk)},"
            f" peak RAM {format_bytes(max(e.ram_bytes for e in cost))}"
        )
    else:
        lines.append(f"\nnothing to do: {len(planned.stages)} stages are cached")
    return "\n".join(lines)


def _why_line(item: StageOutlook) -> str:
    from lmi_build.digest import short

    if item.status in {"cached", "build"}:
        far = " (remote)" if item.where == "there" else ""
        return f"{item.status}{far}  {short(item.stage.key)}"
    if item.status == "rebuild" and not item.changes:
        return f"rebuild: {_reason(item)}  {short(item.stage.key)}"
    return f"{'rebuild: ' * (item.status == 'rebuild')}{_reason(item)}"


def _reason(item: StageOutlook) -> str:
    """Why a stage is built anew, or cannot be built; nothing where that is plain."""
    if item.status == "blocked" and item.stage.blocker is not None:
        return f"cannot run here: {item.stage.blocker.message}"
    if item.status == "rebuild" and not item.changes:
        return "its result is gone from the store"
    if item.status == "rebuild":
        first = item.changes[0]
        more = f" (+{len(item.changes) - 1} more)" if len(item.changes) > 1 else ""
        return f"{first.path} {_value(first.old)} -> {_value(first.new)}{more}"
    return ""


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if text.startswith('"sha256:'):
        return text[8:20]
    limit = 40
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _plan_document(planned: Plan, outlook: Sequence[StageOutlook]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "recipe": planned.recipe,
        "artifacts": [asdict(artifact) for artifact in planned.artifacts],
        "stages": [
            {
                "name": item.stage.name,
                "kind": item.stage.kind,
                "key": item.stage.key,
                "status": item.status,
                "where": item.where,
                "miss": item.miss,
                "estimate": asdict(item.stage.estimate),
                "blocker": asdict(item.stage.blocker) if item.stage.blocker else None,
                "notes": [asdict(note) for note in item.stage.notes],
                "changes": [asdict(change) for change in item.changes],
            }
            for item in outlook
        ],
    }


@click.command()
@RECIPE
@click.argument("stage", required=False)
@knows_catalog
@with_common_options
@click.pass_obj
def why(state: State, recipe: Path, stage: str | None) -> None:
    """
    Say which field makes a stage build anew, with its old and new value.

    STAGE is a kind, such as `quantize`, or a full name; without it, all are told.
    """
    from lmi_build.errors import UsageInvalid

    settings = state.settings()
    planned = api.make_plan(
        api.load_recipe(recipe, overrides=state.overrides), settings
    )
    outlook = api.outlook(planned, settings)
    if stage is not None:
        outlook = [
            item for item in outlook if stage in {item.stage.kind, item.stage.name}
        ]
    if not outlook:
        raise UsageInvalid(
            f"no stage `{stage}` in this plan",
            code="why.no-stage",
            hints=tuple(f"there is `{s.name}`" for s in planned.stages),
        )
    for item in outlook:
        document = {
            "stage": item.stage.name,
            "key": item.stage.key,
            "status": item.status,
            "where": item.where,
            "miss": item.miss,
            "changes": [
                {"path": c.path, "old": c.old, "new": c.new} for c in item.changes
            ],
        }
        if state.output == "text":
            click.echo(_why_text(item))
        else:
            data_line(document)


def _why_text(item: StageOutlook) -> str:
    head = f"{item.stage.name}: {item.status}, key {item.stage.key}"
    if item.miss:
        head += f"\n  {item.miss}"
    if item.changes:
        rows = [[c.path, json.dumps(c.old), json.dumps(c.new)] for c in item.changes]
        return f"{head}\n{table(['field', 'old', 'new'], rows)}"
    told = {
        "cached": "the shared store holds it"
        if item.where == "there"
        else "the store holds it",
        "build": "no earlier run of this recipe made this stage",
        "rebuild": "the same key was built before, but its result is gone",
        "blocked": item.stage.blocker.message if item.stage.blocker else "",
    }
    return f"{head}\n  {told[item.status]}"
