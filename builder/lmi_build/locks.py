"""
Locks on disk and in use: read with a recipe, followed by its plan, written anew.

`plan.locked` knows what a lock means; here it meets files, sources and settings.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build import __version__
from lmi_build.errors import LmiBuildError, Problem, RecipeInvalid
from lmi_build.plan.locked import (
    Maker,
    change_text,
    changed_files,
    entry_missing,
    lock_of,
    stale_problems,
)
from lmi_build.recipe.lock import lock_path, place, read_lock
from lmi_build.values.lock import lock_changes
from lmi_build.values.settings import FROZEN, LOCKED
from lmi_build.values.stage import Note

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmi_build.values.dataset import DatasetFacts
    from lmi_build.values.lock import Lock, LockedData, LockedModel
    from lmi_build.values.model import FileFact, ModelFacts
    from lmi_build.values.recipe import CalibrationSpec, ModelSpec, Recipe
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan

# Differences that a note names; `--locked` names all.
_MAX_TOLD = 3


def with_lock(recipes: tuple[Recipe, ...], path: Path) -> tuple[Recipe, ...]:
    """
    Give recipes the lock that lies beside their file, if one does.

    Raises:
        RecipeInvalid: The lock cannot be used: `lock.unreadable`, `lock.conflict`,
            `lock.schema` or `lock.other-recipe`.
    """
    at = lock_path(path)
    lock = read_lock(at)
    if lock is None:
        return recipes
    name = recipes[0].family or recipes[0].name
    renamed = any(said.startswith("name=") for said in recipes[0].overrides)
    if lock.recipe != name and not renamed:
        problem = Problem(
            code="lock.other-recipe",
            message=f"`{at}` is the lock of `{lock.recipe}`, not of `{name}`",
            path="name",
            hint="move it away, or write it anew:"
            f" `lmi-build lock --upgrade all {path}`",
        )
        raise RecipeInvalid((recipes[0].locate(problem),))
    return tuple(replace(recipe, lock=lock) for recipe in recipes)


def followed_model(
    recipe: Recipe, settings: Settings
) -> tuple[ModelSpec, LockedModel | None]:
    """
    The model to look up, at its locked commit, with the entry that says so.

    Raises:
        RecipeInvalid: `lock.no-entry`, when nothing else may be asked.
    """
    spec = recipe.model
    if recipe.lock is None or settings.lock_mode == LOCKED:
        return spec, None
    entry = recipe.lock.model(spec)
    if entry is None:
        if settings.lock_mode == FROZEN:
            raise entry_missing(recipe, "model", "model.source", spec.source)
        return spec, None
    return (replace(spec, revision=entry.commit) if entry.commit else spec), entry


def followed_data(
    recipe: Recipe, spec: CalibrationSpec, settings: Settings
) -> tuple[CalibrationSpec, LockedData | None]:
    """
    The calibration data to look up, at its locked commit, with its entry.

    Raises:
        RecipeInvalid: `lock.no-entry`, when nothing else may be asked.
    """
    from lmi_build.values.dataset import at_commit, parse_dataset

    if recipe.lock is None or settings.lock_mode == LOCKED:
        return spec, None
    entry = recipe.lock.data(spec)
    if entry is None:
        builtin = parse_dataset(spec.dataset).kind == "builtin"
        if settings.lock_mode == FROZEN and not builtin:
            path = "quantize.calibration.dataset"
            raise entry_missing(recipe, "calibration data", path, spec.dataset)
        return spec, None
    if not entry.commit:
        return spec, entry
    return replace(spec, dataset=at_commit(spec.dataset, entry.commit)), entry


def refuse_changed(
    recipe: Recipe,
    entry: LockedModel | LockedData | None,
    facts: ModelFacts | DatasetFacts | None,
) -> None:
    """
    Hold what was found under a locked entry against its digests.

    Raises:
        RecipeInvalid: `lock.changed`, for every file that is another one.
    """
    if entry is None or facts is None:
        return
    problems = _changed(recipe, entry, facts.files)
    if problems:
        raise RecipeInvalid(problems)


def _changed(
    recipe: Recipe, entry: LockedModel | LockedData, files: Sequence[FileFact]
) -> tuple[Problem, ...]:
    changes = changed_files(entry, files)
    if not changes:
        return ()
    at = lock_path(Path(recipe.file))
    text = at.read_text("utf-8")
    lock = recipe.lock
    entries: Sequence[LockedModel | LockedData] = lock.models if lock else ()
    part = "model"
    if entry not in entries:
        part, entries = "calibration", lock.calibration if lock else ()
    where = f" at {entry.commit[:12]}" if entry.commit else ""
    hint = "restore what was locked (or the lock, if it was edited); to take what is"
    hint += f" there now: `lmi-build lock --upgrade {part} {recipe.file}`"
    return tuple(
        Problem(
            code="lock.changed",
            message=f"`{field.removeprefix('file ')}` of {entry.name}{where} is not"
            f" what was locked: the lock says {old or 'nothing'}, there is"
            f" {new or 'no such file'}",
            path=f"{part} {entry.name}",
            hint=hint,
            span=place(text, str(at), part, entries.index(entry), field),
        )
        for field, old, new in changes
    )


def explain_lost(
    error: LmiBuildError, recipe: Recipe, entry: LockedModel | LockedData | None
) -> LmiBuildError:
    """Say that it was the lock that asked for a commit which is not there."""
    if entry is None or error.code != "source.revision-missing":
        return error
    part = "model" if hasattr(entry, "revision") else "calibration"
    way = f"`lmi-build lock --upgrade {part} {recipe.file}`"
    hint = f"the lock names this commit of {entry.name}; take today's: {way}"
    return type(error)(error.message, code=error.code, hints=(hint, *error.hints))


def current_lock(
    recipes: Sequence[Recipe],
    facts: Mapping[str, ModelFacts],
    plan: Plan,
) -> Lock:
    """
    What the plan of one recipe file stands on.

    Args:
        recipes: The variants, as they were planned.
        facts: Recipe name to its model.
        plan: Made of them.
    """
    import platform

    from lmi_build.catalog.tables import catalog_digest

    maker = Maker(
        lmi_build=__version__,
        catalog=catalog_digest(),
        architecture=platform.machine(),
    )
    return lock_of(recipes, facts, plan, maker)


def refuse_stale(
    recipes: Sequence[Recipe],
    planned: Sequence[Recipe],
    facts: Mapping[str, ModelFacts],
    plan: Plan,
) -> None:
    """
    Hold every recipe's lock against a plan that looked at everything anew.

    Args:
        recipes: As they were loaded, with their locks.
        planned: The same recipes as they were planned.
        facts: Recipe name to its model.
        plan: Made of them.

    Raises:
        RecipeInvalid: `lock.stale`, with every difference.
    """
    problems: list[Problem] = []
    for first, old, new in _locks(recipes, planned, facts, plan):
        file = str(lock_path(Path(first.file)))
        problems += stale_problems(first, file, old, new)
    if problems:
        raise RecipeInvalid(tuple(problems))


def _locks(
    recipes: Sequence[Recipe],
    planned: Sequence[Recipe],
    facts: Mapping[str, ModelFacts],
    plan: Plan,
) -> Iterator[tuple[Recipe, Lock, Lock]]:
    """Of every file with a lock: a recipe, what the lock says, what is so now."""
    for file in dict.fromkeys(recipe.file for recipe in recipes):
        first = next(recipe for recipe in recipes if recipe.file == file)
        if first.lock is not None:
            now = [recipe for recipe in planned if recipe.file == file]
            yield first, first.lock, current_lock(now, facts, plan)


def with_notes(
    recipes: Sequence[Recipe], facts: Mapping[str, ModelFacts], plan: Plan
) -> Plan:
    """
    Say with a plan that followed a lock in what the lock no longer fits.

    The note stands at the first stage of the recipe, and is in no key.

    Args:
        recipes: As they were planned.
        facts: Recipe name to its model.
        plan: Made of them.
    """
    notes: dict[str, Note] = {}
    for first, old, new in _locks(recipes, recipes, facts, plan):
        changes = lock_changes(old, new)
        stages = next(a.stages for a in plan.artifacts if a.name == first.name)
        if changes:
            told = "; ".join(change_text(change) for change in changes[:_MAX_TOLD])
            more = len(changes) - _MAX_TOLD
            notes[stages["fetch"]] = Note(
                level="info",
                code="lock.stale",
                message=f"`{lock_path(Path(first.file))}` is stale: {told}"
                f"{f'; and {more} more' if more > 0 else ''};"
                f" `lmi-build lock {first.file}` writes it anew",
            )
    if not notes:
        return plan
    stages_with_notes = tuple(
        replace(stage, notes=(notes[key], *stage.notes)) if key in notes else stage
        for stage in plan.stages
        for key in (stage.key,)
    )
    return replace(plan, stages=stages_with_notes)
