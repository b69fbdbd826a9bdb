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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build import registry
from lmi_build.errors import (
    LmiBuildError,
    Problem,
    RecipeInvalid,
    SourceInvalid,
    Unsupported,
)
from lmi_build.events import ignore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lmi_build.digest import Digest
    from lmi_build.events import Emit
    from lmi_build.plan.explain import Change
    from lmi_build.plan.planner import World
    from lmi_build.spi import Host
    from lmi_build.store.store import Store
    from lmi_build.values.dataset import DatasetFacts
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.result import BuildResult
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan, Stage


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


def resolve(
    recipes: Sequence[Recipe],
    settings: Settings,
    *,
    hashed: bool = True,
    served: bool = True,
) -> dict[str, ModelFacts]:
    """
    Pin down the model of every recipe; each distinct model is looked up once.

    Args:
        recipes: Checked recipes.
        settings: The user's environment.
        hashed: Whether local weights are named by their content, as a plan needs it.
        served: Whether models must have a tokenizer; sizes and costs need none.

    Returns:
        Recipe name to facts.

    Raises:
        RecipeInvalid: The recipe names something that is not a model, or its lock asks
            for something else than there is.
        RemoteFailed: The hub or S3 cannot be reached or refuses.
        SourceInvalid: The model's files are broken or refused.
    """
    from lmi_build.locks import explain_lost, followed_model, refuse_changed
    from lmi_build.plan.locked import require_locks
    from lmi_build.sources.resolve import resolve_model

    require_locks(recipes, settings.lock_mode)
    found: dict[object, ModelFacts] = {}
    by_name: dict[str, ModelFacts] = {}
    for recipe in recipes:
        base = _base(recipe)
        spec, entry = followed_model(recipe, settings)
        wanted = (spec, _lies_at(spec.source, base))
        if wanted not in found:
            try:
                # A lock is held against what the files are, so they are read.
                hashes = hashed or entry is not None
                facts = resolve_model(
                    spec, settings=settings, base=base, hashed=hashes, served=served
                )
            except SourceInvalid as error:
                raise _placed(explain_lost(error, recipe, entry), recipe) from error
            found[wanted] = facts
        by_name[recipe.name] = found[wanted]
        refuse_changed(recipe, entry, found[wanted])
    return by_name


# Faults of a source that are faults of what the recipe says, by the key that says it.
_SAID_IN_RECIPE = {
    "source.bad-name": "model.source",
    "source.not-found": "model.source",
    "source.bad-dtype": "model.dtype",
    "source.revision-missing": "model.revision",
    "source.remote-code": "model.trust_remote_code",
}


_DATASET = "quantize.calibration.dataset"
_SAID_ABOUT_DATA = {
    "calibration.dataset": _DATASET,
    "calibration.no-data-files": _DATASET,
    "calibration.unreadable": _DATASET,
    "source.bad-name": _DATASET,
    "source.revision-missing": _DATASET,
}


def _placed(
    error: LmiBuildError, recipe: Recipe, said: Mapping[str, str] = _SAID_IN_RECIPE
) -> LmiBuildError:
    """Give a fault that the recipe makes its place in the recipe."""
    path = said.get(error.code)
    if path is None:
        return error
    problem = Problem(
        code=error.code,
        message=error.message,
        path=path,
        hint=error.hints[0] if error.hints else "",
    )
    return RecipeInvalid((recipe.locate(problem),))


def _base(recipe: Recipe) -> Path:
    """The folder that relative paths of a recipe start from."""
    return Path(recipe.file).absolute().parent


def _lies_at(source: str, base: Path) -> Path | None:
    """Where a local source lies; None for others, the same from every recipe."""
    from lmi_build.sources.resolve import local_path, source_kind

    try:
        kind = source_kind(source, base=base)
    except SourceInvalid:
        return base  # looking it up says what is wrong, and where
    return None if kind in {"hub", "s3"} else local_path(source, base=base)


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
    return _pin_calibration(recipes, settings), world


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


def _pin_calibration(recipes: Sequence[Recipe], settings: Settings) -> list[Recipe]:
    """Resolve the calibration data of every recipe; each is looked up once."""
    from lmi_build.locks import explain_lost, followed_data, refuse_changed
    from lmi_build.plan.locked import require_locks
    from lmi_build.sources.dataset import resolve_dataset

    require_locks(recipes, settings.lock_mode)
    found: dict[object, DatasetFacts | None] = {}
    pinned = []
    for recipe in recipes:
        spec = recipe.quantize.calibration
        if spec is None:
            pinned.append(recipe)
            continue
        base = _base(recipe)
        asked, entry = followed_data(recipe, spec, settings)
        lies = None if ":" in asked.dataset else base / asked.dataset
        wanted = (asked.dataset, spec.num_samples * spec.max_seq_len, lies)
        if wanted not in found:
            try:
                facts = resolve_dataset(asked, settings=settings, base=base)
            except (SourceInvalid, Unsupported) as error:
                lost = explain_lost(error, recipe, entry)
                raise _placed(lost, recipe, _SAID_ABOUT_DATA) from error
            found[wanted] = facts and replace(facts, source=spec.dataset)
        refuse_changed(recipe, entry, found[wanted])
        placed = replace(spec, facts=found[wanted])
        quantize = replace(recipe.quantize, calibration=placed)
        pinned.append(replace(recipe, quantize=quantize))
    return pinned


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


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOutlook:
    """
    What a build would do with one stage.

    Args:
        stage: The stage.
        status: `cached`, `build`, `rebuild` or `blocked`.
        changes: For `rebuild`, what differs from the last run of this recipe.
        where: For `cached`, `here`, or `there` when only the shared store has it.
        miss: Why the shared store has no result; empty when it was not asked.
    """

    stage: Stage
    status: str
    changes: tuple[Change, ...] = ()
    where: str = ""
    miss: str = ""


def outlook(plan: Plan, settings: Settings) -> list[StageOutlook]:
    """
    Compare a plan with the store and with the last run of the same recipe.

    A shared store that cannot be asked is told in `miss`, not raised.
    """
    from lmi_build.execute.record import past_runs
    from lmi_build.plan.explain import diff
    from lmi_build.store.whereabouts import whereabouts

    with closing(open_store(settings)) as store:
        places = whereabouts(store, (stage.key for stage in plan.stages))
    last: dict[str, Mapping[str, Any]] = {}
    for run in past_runs(store.root, plan.recipe):
        for row in run.get("stages", ()):
            last.setdefault(row["name"], row)
    found = []
    for stage in plan.stages:
        old = last.get(stage.name)
        changes: tuple[Change, ...] = ()
        place = places[stage.key]
        if place.result is not None:
            status = "cached"
        elif stage.blocker is not None:
            status = "blocked"
        elif old is None:
            status = "build"
        else:
            changes = tuple(diff(old["document"], stage.key_document()))
            status = "rebuild"
        found.append(
            StageOutlook(
                stage=stage,
                status=status,
                changes=changes,
                where=place.where,
                miss=place.cause,
            )
        )
    return found


def load_plan(file: Path, settings: Settings) -> Plan:
    """
    Read a plan that `plan --out` saved, and refuse it when a tool has moved since.

    The model's files are compared by their digests when they are fetched.

    Args:
        file: What `plan --out` wrote.
        settings: The user's environment.

    Raises:
        UsageInvalid: Not a plan, or made with other versions or by other providers.
    """
    from lmi_build.errors import UsageInvalid
    from lmi_build.plan.saved import plan_from_json

    try:
        plan = plan_from_json(file.read_bytes(), str(file))
    except OSError as error:
        raise UsageInvalid(
            f"{file} cannot be read: {error.strerror}",
            code="plan.unreadable",
            hints=("make it: `lmi-build plan RECIPE --out FILE`",),
        ) from error
    _refuse_moved(plan, file, settings)
    return plan


def _tools_here(stage: Stage, settings: Settings) -> Mapping[str, str | None]:
    """Versions of a stage's tools as a plan made here would have them."""
    if not stage.toolchain:
        return _versions(stage.tools)
    from lmi_build.toolchains.environment import pinned_toolchain

    pinned = pinned_toolchain(stage.toolchain, settings)
    return {name: pinned.versions.get(name) for name in stage.tools}


def _refuse_moved(plan: Plan, file: Path, settings: Settings) -> None:
    from lmi_build.errors import UsageInvalid

    known = _worker_entries()
    for stage in plan.stages:
        if stage.entry not in known:
            raise UsageInvalid(
                f"{file}: {stage.name} would run `{stage.entry}`,"
                " which no installed provider offers",
                code="plan.foreign-entry",
                hints=("install the plugin, or plan again here",),
            )
        for name, now in _tools_here(stage, settings).items():
            planned = stage.tools[name]
            if (now or "absent") != planned:
                raise UsageInvalid(
                    f"{file}: {stage.name} was planned with {name} {planned},"
                    f" here is {now or 'none'}",
                    code="plan.moved",
                    hints=(f"install {name}=={planned}, or plan again",),
                )


def _worker_entries() -> set[str]:
    """Every entry that a plan made here could name."""
    from lmi_build.package.stage import ENTRY as PACKAGE
    from lmi_build.sources.dataset import DATASET_ENTRY as DATASET
    from lmi_build.sources.resolve import FETCH_ENTRY as FETCH
    from lmi_build.verify.stage import ENTRY as VERIFY

    found = {PACKAGE, FETCH, DATASET, VERIFY}
    for name in registry.names(registry.QUANTIZERS):
        found.add(registry.quantizer(name).info.entry)
    for name in registry.names(registry.BACKENDS):
        info = registry.backend(name).info
        found |= {info.entry, *info.further_entries}
    return found
