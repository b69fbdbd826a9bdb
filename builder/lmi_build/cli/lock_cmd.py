"""`lock`: write down what a recipe was resolved to, or say what moved since."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmi_build.cli.catalog_option import knows_catalog
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, say
from lmi_build.values.lock import LOCK_PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.relock import FromJob, Relocked
    from lmi_build.values.lock import LockChange
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan

# Status of `lock --check` when a lock would be written anew.
_STALE = 10


@click.command()
@click.argument(
    "recipes",
    metavar="RECIPE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)
@click.option(
    "--upgrade",
    multiple=True,
    type=click.Choice([*LOCK_PARTS, "all"]),
    help="Look at this anew instead of keeping what is locked; may be given again.",
)
@click.option(
    "--tools-from",
    multiple=True,
    metavar="[KIND=]JOB|FILE.json",
    help="Take versions of tools from a job's container: the job's name in the shared "
    "store, or its result in a file; KIND, such as compile, limits it to these stages.",
)
@click.option(
    "--check", is_flag=True, help="Write nothing; exit with 10 if a lock is stale."
)
@knows_catalog
@with_common_options
@click.pass_obj
def lock(
    state: State,
    *,
    recipes: tuple[Path, ...],
    upgrade: tuple[str, ...],
    tools_from: tuple[str, ...],
    check: bool,
) -> int:
    """
    Write what a recipe is resolved to into a lock beside it.

    `recipe.yaml` gets `recipe.lock`: commit and digests of the model and the
    calibration data, versions of tools, the catalogue. What is locked already stays,
    unless `--upgrade` names it. Planning follows a lock; `--locked` on `plan` and
    `build` fails when it is stale, `--frozen` looks at nothing else.
    """
    from lmi_build.relock import relock, write_lock

    settings = state.settings()
    results = []
    if tools_from:
        shared = _with_store(settings, recipes, state.overrides)
        results = [_result(text, shared) for text in tools_from]
    found = [
        relock(
            path,
            settings,
            overrides=state.overrides,
            upgrade=upgrade,
            results=results,
            images=partial(_images, settings, "image" in upgrade),
        )
        for path in recipes
    ]
    for item in found:
        if not check and item.changes:
            write_lock(item)
    if state.output == "text":
        for item in found:
            _tell(state, item, check=check)
    else:
        data({"locks": [_document(item, check=check) for item in found]})
    stale = any(item.changes for item in found)
    return _STALE if check and stale else 0


def _images(
    settings: Settings,
    ask: bool,  # noqa: FBT001 - bound by name's place in `partial`
    plan: Plan,
    recipes: Sequence[Recipe],
    locked: Mapping[str, str],
) -> Mapping[str, str]:
    """What the lock says of the images that jobs run in."""
    from lmi_build.jobs.locked_images import references, uris_of

    return references(uris_of(plan, recipes), locked, settings, ask=ask)


def _with_store(
    settings: Settings, recipes: Sequence[Path], overrides: Sequence[str]
) -> Settings:
    """The settings, with the store of the recipes' jobs where they name none."""
    from lmi_build import api

    if settings.store:
        return settings
    loaded = [
        recipe
        for path in recipes
        for recipe in api.load_recipe(path, overrides=overrides, lock=False)
    ]
    stores = [recipe.job.store for recipe in loaded if recipe.job and recipe.job.store]
    return replace(settings, store=stores[0]) if stores else settings


def _result(text: str, settings: Settings) -> FromJob:
    """What `--tools-from` names."""
    from lmi_build.relock import FromJob, read_result, shared_result

    kind, _, name = text.rpartition("=")
    if name.endswith(".json"):
        return FromJob(result=read_result(Path(name)), kind=kind)
    return FromJob(result=shared_result(name, settings), kind=kind)


def _tell(state: State, item: Relocked, *, check: bool) -> None:
    if not item.changes:
        say(state, f"{item.file}: up to date")
    else:
        count = len(item.changes)
        word = "differs" if check else "written"
        things = "1 change" if count == 1 else f"{count} changes"
        if item.old is None:
            things = "missing" if check else "new"
        say(state, f"{item.file}: {word}, {things}")
        for change in item.changes:
            click.echo(change_line(change))
    if item.open_tools:
        say(
            state,
            f"note: not locked, not in this environment: {', '.join(item.open_tools)};"
            " `--tools-from JOB` takes their versions from a job's container",
        )


def change_line(change: LockChange) -> str:
    """One difference: a mark, what it is, and its two values."""
    head = f"{change.part} {change.what}"
    if not change.old:
        return f"+ {head}  {change.new}"
    if not change.new:
        return f"- {head}  {change.old}"
    return f"~ {head}  {change.old} -> {change.new}"


def _document(item: Relocked, *, check: bool) -> dict[str, Any]:
    return {
        "file": str(item.file),
        "written": bool(item.changes) and not check,
        "stale": bool(item.changes) and check,
        "not_locked": list(item.open_tools),
        "changes": _changes(item.changes),
    }


def _changes(changes: Sequence[LockChange]) -> list[dict[str, Any]]:
    return [{**asdict(change), "path": change.path} for change in changes]
