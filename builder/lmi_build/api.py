"""
The library: four steps from a recipe to an artifact.

```python
recipes = load_recipe(Path("recipe.yaml"))
plan = make_plan(recipes, settings)
result = build(plan, settings)
tree = write_artifact(result, plan.artifacts[0].name, Path("artifacts"), settings)
```

`artifacts` does the rest: publish, check, read, fetch. The command line calls nothing
else.
"""

from __future__ import annotations

import os
import platform
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build import registry
from lmi_build.errors import (
    RecipeInvalid,
)
from lmi_build.events import ignore
from lmi_build.execute.outlook import StageOutlook, outlook
from lmi_build.execute.saved import load_plan
from lmi_build.pins import pin_calibration, resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lmi_build.digest import Digest
    from lmi_build.events import Emit
    from lmi_build.plan.planner import World
    from lmi_build.spi import Host
    from lmi_build.store.store import Store
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.result import BuildResult
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan


__all__ = [
    "StageOutlook",
    "build",
    "check_offline",
    "host",
    "load_plan",
    "load_recipe",
    "make_plan",
    "open_store",
    "outlook",
    "plan_and_pins",
    "resolve",
    "write_artifact",
]


def load_recipe(
    path: Path, *, overrides: Sequence[str] = (), lock: bool = True
) -> tuple[Recipe, ...]:
    """
    Read a recipe file; a `matrix` gives several recipes.

    Args:
        path: The YAML file.
        overrides: `dotted.path=value` pairs, as `--set` takes them.
        lock: Whether the lock that lies beside it is read too.

    Raises:
        RecipeInvalid: Every problem of the file and the overrides at once; or of the
            lock.
    """
    from lmi_build.recipe.load import load_recipe as load

    recipes = load(path, overrides=overrides)
    if not lock:
        return recipes
    from lmi_build.locks import with_lock

    return with_lock(recipes, path)


def make_plan(
    recipes: Sequence[Recipe],
    settings: Settings,
    *,
    facts: Mapping[str, ModelFacts] | None = None,
) -> Plan:
    """
    Name every stage of every recipe; nothing is built or downloaded.

    Args:
        recipes: The variants of one recipe file.
        settings: The user's environment.
        facts: Models already resolved, by recipe name.

    A lock beside a recipe's file is followed; with `Settings.lock_mode` `LOCKED`
    everything is looked at anew and held against it.

    Raises:
        RecipeInvalid: The recipe does not fit the model, the providers or its lock.
        Unsupported: A provider is not installed.
    """
    return plan_and_pins(recipes, settings, facts)[0]


def plan_and_pins(
    recipes: Sequence[Recipe],
    settings: Settings,
    facts: Mapping[str, ModelFacts] | None = None,
) -> tuple[Plan, list[Recipe], Mapping[str, ModelFacts]]:
    """The plan, with the recipes and models that it was made of."""
    from lmi_build.locks import refuse_stale, with_notes
    from lmi_build.plan import planner
    from lmi_build.plan.locked import open_lock
    from lmi_build.values.settings import FOLLOW, LOCKED

    opened = [open_lock(recipe, settings) for recipe in recipes]
    pinned, world = _world(opened, settings, facts)
    plan = planner.make_plan(_common_name(recipes), pinned, world)
    if settings.lock_mode == LOCKED:
        refuse_stale(recipes, pinned, world.facts, plan)
    if settings.lock_mode == FOLLOW:
        plan = with_notes(pinned, world.facts, plan)
    return plan, pinned, world.facts


def _world(
    recipes: Sequence[Recipe],
    settings: Settings,
    facts: Mapping[str, ModelFacts] | None,
) -> tuple[list[Recipe], World]:
    """Recipes with their paths settled, and what the planner may know."""
    from lmi_build.package.handler_files import handler_digest
    from lmi_build.plan.planner import World
    from lmi_build.toolchains.environment import pinned_toolchain

    world = World(
        facts=facts if facts is not None else resolve(recipes, settings),
        quantizer=registry.quantizer,
        backend=registry.backend,
        versions=_versions,
        handler_digest=handler_digest,
        host=host(settings),
        num_cores=len(os.sched_getaffinity(0)),
        settings=settings,
        toolchain=lambda name: pinned_toolchain(name, settings),
    )
    return pin_calibration(recipes, settings), world


def host(settings: Settings) -> Host:
    """This machine, as far as backends may know it."""
    from lmi_build.execute.ask import ask
    from lmi_build.spi import Host

    return Host(
        architecture=platform.machine(),
        runner=settings.runner,
        versions=_versions,
        ask=ask,
        rehearse=settings.rehearse,
        places={"cache": str(settings.cache_dir), **settings.places},
    )


def _versions(distributions: Iterable[str]) -> Mapping[str, str | None]:
    from lmi_build.toolchains.versions import installed_versions

    return installed_versions(distributions)


def _common_name(recipes: Sequence[Recipe]) -> str:
    """The name in the file, which every variant's name starts with."""
    only = len(recipes) == 1
    return recipes[0].name if only else recipes[0].family or recipes[0].name


def open_store(settings: Settings) -> Store:
    """
    The store of these settings, with the shared one behind it where they name one.

    Nothing is created or connected before it is needed; close it at the end.

    Raises:
        UsageInvalid: `store.bad-url`.
    """
    from lmi_build.execute.stores import open_store as open_it

    return open_it(settings)


def build(
    plan: Plan,
    settings: Settings,
    *,
    emit: Emit = ignore,
    until: str | None = None,
    thorough: bool = False,
) -> BuildResult:
    """
    Build what the store does not hold.

    Args:
        plan: From `make_plan`, or a saved one.
        settings: The user's environment.
        emit: Where events go.
        until: Kind of the last stage wanted; None builds all.
        thorough: Also send again what a shared store has lost of results that are
            here.

    Raises:
        LmiBuildError: The first stage that failed; everything before it is kept.
    """
    from lmi_build.execute.executor import execute

    with closing(open_store(settings)) as store:
        return execute(
            plan,
            store=store,
            settings=settings,
            emit=emit,
            until=until,
            thorough=thorough,
        )


def write_artifact(
    result: BuildResult, name: str, out: Path, settings: Settings
) -> tuple[Path, Digest]:
    """
    Lay a built artifact out as a folder.

    A folder that already holds this artifact is left alone; one that holds another
    of ours is replaced in one step; anything else is refused.

    Args:
        result: From `build`.
        name: Name of the artifact.
        out: Parent folder; the artifact lies in `out/name`, its verification report
            beside it in `out/name.verify.json`.
        settings: The user's environment.

    Returns:
        The folder, and the digest of its manifest: the artifact's identity.

    Raises:
        UsageInvalid: The folder holds something that is not an artifact.
    """
    from lmi_build.execute.checkout import check_out

    results = result.artifacts[name]
    with closing(open_store(settings)) as store:
        return check_out(store, results, out / name)


def check_offline(recipes: Sequence[Recipe], settings: Settings) -> bool:
    """
    Check recipes against providers and, where they are known, the models' sizes.

    Returns:
        Whether every model's sizes were at hand without the network.

    Raises:
        RecipeInvalid: Every problem found.
    """
    from lmi_build.errors import RemoteFailed

    offline = replace(settings, offline=True)
    try:
        # Nothing is named here, so no weight need be read.
        facts = resolve(recipes, offline, hashed=False)
        pinned, world = _world(recipes, offline, facts)
    except RemoteFailed:
        # Only what is not here ends so; `plan` looks at it over the network.
        from lmi_build.plan.planner import check_providers

        problems = [
            problem
            for recipe in recipes
            for problem in check_providers(recipe, registry.quantizer, registry.backend)
        ]
        if problems:
            raise RecipeInvalid(tuple(problems)) from None
        return False
    from lmi_build.plan.planner import check

    check(pinned, world)
    return True
