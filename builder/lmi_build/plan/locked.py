"""
Planning with a lock: what it holds still, and what is so without it.

Pure: the planner asks here for versions, threads and the processor of a recipe that has
a lock; `lock_of` says what a finished plan stands on, and `stale_problems` names every
difference at the place of the recipe that it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.errors import Problem, RecipeInvalid
from lmi_build.values.lock import (
    Lock,
    lock_changes,
    locked_data,
    locked_model,
    scoped,
)
from lmi_build.values.settings import FOLLOW, FROZEN, LOCKED
from lmi_build.values.stage import Blocker

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from lmi_build.plan.world import World
    from lmi_build.values.lock import LockChange, LockedData, LockedModel
    from lmi_build.values.model import FileFact, ModelFacts
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan

ABSENT = "absent"


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """
    What writes a lock.

    Args:
        lmi_build: Its version.
        catalog: Digest of its catalogue.
        architecture: Processor that its engines are for.
    """

    lmi_build: str
    catalog: str
    architecture: str


def open_lock(recipe: Recipe, settings: Settings) -> Recipe:
    """
    A recipe as it is planned: `--locked` looks at everything anew.

    What a job's container said of its tools cannot be seen from here, and stays; so
    does a number of threads, which any machine can follow, unless the user names one.
    """
    lock = recipe.lock
    if lock is None or settings.lock_mode != LOCKED:
        return recipe
    parts = ["model", "calibration", *(() if lock.jobs else ("tools",))]
    opened = lock.without(parts)
    kept = 0 if settings.threads else lock.threads
    return replace(recipe, lock=replace(opened, threads=kept))


def require_locks(recipes: Sequence[Recipe], mode: str) -> None:
    """
    Refuse a recipe without a lock where one was asked for.

    Raises:
        RecipeInvalid: `lock.missing`.
    """
    if mode == FOLLOW:
        return
    files = dict.fromkeys(r.file for r in recipes if r.lock is None)
    problems = tuple(
        Problem(
            code="lock.missing",
            message=f"`{file}` has no lock, and `--{mode}` asks for one",
            hint=f"run `lmi-build lock {file}`",
        )
        for file in files
    )
    if problems:
        raise RecipeInvalid(problems)


def entry_missing(recipe: Recipe, part: str, path: str, name: str) -> RecipeInvalid:
    """The error of `--frozen` where a lock has nothing to take."""
    problem = Problem(
        code="lock.no-entry",
        message=f"the lock has no {part} `{name}`, and `--{FROZEN}` looks nowhere else",
        path=path,
        hint=f"run `lmi-build lock {recipe.file}`",
    )
    return RecipeInvalid((recipe.locate(problem),))


def changed_files(
    entry: LockedModel | LockedData, files: Sequence[FileFact]
) -> list[tuple[str, str, str]]:
    """
    Files that are not what a lock says: field of the entry, locked, found.

    Args:
        entry: Of the lock.
        files: What was found under its commit, or in its folder.
    """
    locked = {f.path: f"{f.digest} ({f.size} bytes)" for f in entry.files}
    found = {f.path: f"{f.digest} ({f.size} bytes)" for f in files}
    return [
        (f"file {path}", locked.get(path, ""), found.get(path, ""))
        for path in sorted({*locked, *found})
        if locked.get(path) != found.get(path)
    ]


def as_locked(recipe: Recipe, world: World) -> World:
    """The world that a recipe is planned in: its lock may name another processor."""
    lock = recipe.lock
    if lock is None or not lock.architecture:
        return world
    if lock.architecture == world.architecture:
        return world
    host = replace(world.host, architecture=lock.architecture)
    return replace(world, host=host, planned_on=world.architecture)


def threads(recipe: Recipe, world: World) -> int:
    """Threads of a method whose sums depend on them."""
    locked = recipe.lock.threads if recipe.lock else 0
    return locked or world.settings.threads or world.num_cores


def hold(
    recipe: Recipe, kind: str, toolchain: str, versions: dict[str, str | None]
) -> Blocker | None:
    """
    Put a lock's versions in the place of this machine's.

    Args:
        recipe: With its lock, or without.
        kind: Of the stage.
        toolchain: Its private environment, or empty.
        versions: Of the stage's tools here; changed in place.

    Returns:
        What stops the stage here when they differ, or None.
    """
    if recipe.lock is None:
        return None
    if toolchain:
        locked = recipe.lock.toolchains.get(toolchain, {})
    else:
        locked = recipe.lock.tools_of(recipe.name, kind)
    moved = {
        name: (locked[name], version)
        for name, version in sorted(versions.items())
        if name in locked and locked[name] != (version or ABSENT)
    }
    versions.update({name: want for name, (want, _) in moved.items()})
    if not moved:
        return None
    told = ", ".join(
        f"{name} {want} (here {have or 'none'})" for name, (want, have) in moved.items()
    )
    pins = " ".join(f"{name}=={want}" for name, (want, _) in moved.items())
    way = f"install {pins}" if not toolchain else "use the lmi-build of the lock"
    return Blocker(
        code="lock.tools",
        message=f"is locked with {told}",
        hint=f"{way}, run it as a job whose container has these, or take what is here:"
        f" `lmi-build lock --upgrade tools {recipe.file}`",
    )


def lock_terms(recipe: Recipe, kind: str) -> Hashable:
    """What a lock decides of a stage; equal terms make equal stages."""
    lock = recipe.lock
    if lock is None:
        return None
    tools = sorted(lock.tools_of(recipe.name, kind).items())
    pins = [(name, *sorted(pins.items())) for name, pins in lock.toolchains.items()]
    return tuple(tools), tuple(sorted(pins)), lock.threads, lock.architecture


def other_processor(recipe: Recipe, platform: str, world: World) -> Blocker | None:
    """What stops a stage whose output is for another processor than this one."""
    if platform == "any" or not world.planned_on:
        return None
    return Blocker(
        code="lock.processor",
        message=f"is locked for {world.architecture}, this machine is"
        f" {world.planned_on}",
        hint="run it as a job, or lock for this machine:"
        f" `lmi-build lock --upgrade tools {recipe.file}`",
    )


def lock_of(
    recipes: Sequence[Recipe],
    facts: Mapping[str, ModelFacts],
    plan: Plan,
    maker: Maker,
) -> Lock:
    """
    What a plan of one recipe file stands on.

    Args:
        recipes: The variants, with their calibration data resolved.
        facts: Recipe name to its model.
        plan: Made of them; it may hold other recipes too.
        maker: Who writes the lock.
    """
    old = recipes[0].lock
    models = {}
    calibration = {}
    for recipe in recipes:
        entry = locked_model(recipe.model, facts[recipe.name])
        models[entry.name] = entry
        spec = recipe.quantize.calibration
        if spec is not None and spec.facts is not None:
            data = locked_data(spec, spec.facts)
            calibration[data.name] = data
    names = {recipe.name for recipe in recipes}
    stages = {stage.key: stage for stage in plan.stages}
    placed = [
        (artifact.name, kind, stages[key])
        for artifact in plan.artifacts
        if artifact.name in names
        for kind, key in artifact.stages.items()
    ]
    rows = {
        (name, kind): present(stage.tools)
        for name, kind, stage in placed
        if not stage.toolchain
    }
    used = {stage.params.get("threads", 0) for _, _, stage in placed}
    return Lock(
        recipe=recipes[0].family or recipes[0].name,
        lmi_build=maker.lmi_build,
        catalog=maker.catalog,
        architecture=(old.architecture if old else "") or maker.architecture,
        threads=max(n for n in used if isinstance(n, int)) if used else 0,
        jobs=old.jobs if old else (),
        models=tuple(models[name] for name in sorted(models)),
        calibration=tuple(calibration[name] for name in sorted(calibration)),
        images=old.images if old else {},
        tools=scoped(rows),
        toolchains={
            stage.toolchain: dict(sorted(stage.tools.items()))
            for _, _, stage in sorted(placed, key=lambda row: row[2].toolchain)
            if stage.toolchain
        },
    )


def present(tools: Mapping[str, str]) -> dict[str, str]:
    """Tools that there are; what is absent is not known, so it is not locked."""
    return {name: version for name, version in tools.items() if version != ABSENT}


def stale_problems(
    recipe: Recipe, file: str, old: Lock, new: Lock
) -> tuple[Problem, ...]:
    """
    Every difference of a lock, at the place of the recipe that it belongs to.

    Args:
        recipe: Of the lock.
        file: What the lock is called.
        old: What it says.
        new: What is so now.
    """
    return tuple(
        recipe.locate(
            Problem(
                code="lock.stale",
                message=f"`{file}` is stale: {change_text(change)}",
                path=change.path,
                hint=_way_out(change, recipe),
            )
        )
        for change in lock_changes(old, new)
    )


def _way_out(change: LockChange, recipe: Recipe) -> str:
    known = change.part in {"model", "calibration", "tools"}
    upgrade = f"--upgrade {change.part} " if known and change.old and change.new else ""
    return f"run `lmi-build lock {upgrade}{recipe.file}`"


def change_text(change: LockChange) -> str:
    """One difference as a line: what, the locked value, the one now."""
    if not change.old:
        return f"{change.part} {change.what} is not in it, now {change.new}"
    if not change.new:
        return f"{change.part} {change.what} is gone, was {change.old}"
    return f"{change.part} {change.what}: {change.old} -> {change.new}"
