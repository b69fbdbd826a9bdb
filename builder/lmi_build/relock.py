"""
Locks written: what is locked stays, what is asked for is taken anew.

```
recipe + its lock, without the parts to upgrade -> plan -> lock -> file
```
"""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from lmi_build import api
from lmi_build.errors import LmiBuildError, UsageInvalid
from lmi_build.locks import current_lock
from lmi_build.plan.locked import ABSENT, present
from lmi_build.recipe.lock import lock_path, lock_text, read_lock
from lmi_build.values.lock import LOCK_PARTS, Lock, lock_changes, scoped
from lmi_build.values.settings import FOLLOW

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lmi_build.values.job import JobResult
    from lmi_build.values.lock import LockChange
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan

ALL = "all"
Images: TypeAlias = (
    "Callable[[Plan, Sequence[Recipe], Mapping[str, str]], Mapping[str, str]]"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FromJob:
    """
    A job whose container says the versions of tools.

    Args:
        result: What it left.
        kind: Kind of the stages that it holds for; empty for those it built, or for
            all where it built none.
    """

    result: JobResult
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relocked:
    """
    A lock beside what it was.

    Args:
        file: Where it lies, or would lie.
        old: What lay there; None where nothing usable did.
        lock: What it says now.
        open_tools: Tools that no version is known of: they are not here.
    """

    file: Path
    old: Lock | None
    lock: Lock
    open_tools: tuple[str, ...]

    @property
    def changes(self) -> tuple[LockChange, ...]:
        """What differs; everything, where there was none."""
        empty = replace(
            self.lock.without(LOCK_PARTS), recipe="", lmi_build="", catalog=""
        )
        return lock_changes(self.old or empty, self.lock)


def relock(
    path: Path,
    settings: Settings,
    *,
    overrides: Sequence[str] = (),
    upgrade: Sequence[str] = (),
    results: Sequence[FromJob] = (),
    images: Images | None = None,
) -> Relocked:
    """
    Find out what a recipe's lock has to say; nothing is written.

    Args:
        path: The recipe.
        settings: The user's environment.
        overrides: As `--set` takes them.
        upgrade: Of `LOCK_PARTS` or `ALL`: what is looked at anew instead of kept.
        results: Jobs whose containers say the versions of tools.
        images: Says which images a plan's stages run in, with what is locked of them.

    Raises:
        RecipeInvalid: The recipe, or the lock that is there, cannot be used.
        UsageInvalid: `lock.tools`: the jobs do not say what is needed.
        RemoteFailed: A source cannot be reached.
    """
    settings = replace(settings, lock_mode=FOLLOW)
    anew = ALL in upgrade
    recipes = api.load_recipe(path, overrides=overrides, lock=not anew)
    old = _readable(path) if anew else recipes[0].lock
    parts = {*upgrade} - {ALL}
    opened = [
        replace(recipe, lock=recipe.lock.without(parts)) if recipe.lock else recipe
        for recipe in recipes
    ]
    plan, pinned, facts = api.plan_and_pins(opened, settings)
    lock = current_lock(pinned, facts, plan)
    if images is not None:
        locked = old.images if old else {}
        lock = replace(lock, images=images(plan, pinned, locked))
    if results:
        lock, missing = _with_results(plan, lock, results)
    else:
        used = [stage.tools for stage in plan.stages if not stage.toolchain]
        missing = tuple(sorted({n for t in used for n, v in t.items() if v == ABSENT}))
    return Relocked(file=lock_path(path), old=old, lock=lock, open_tools=missing)


def _readable(path: Path) -> Lock | None:
    """The lock that is replaced, for the difference; a broken one is none."""
    try:
        return read_lock(lock_path(path))
    except LmiBuildError:
        return None


def _with_results(
    plan: Plan, lock: Lock, results: Sequence[FromJob]
) -> tuple[Lock, tuple[str, ...]]:
    """The lock with what containers had, and the tools that none of them has."""
    said = _tools_by_stage(results)
    stages = {stage.key: stage for stage in plan.stages}
    rows: dict[tuple[str, str], Mapping[str, str]] = {}
    missing: set[str] = set()
    for artifact in plan.artifacts:
        for kind, key in artifact.stages.items():
            tools = stages[key].tools
            if stages[key].toolchain:
                continue
            there = next(
                (
                    said[at]
                    for at in (f"{artifact.name}/{kind}", kind, "")
                    if at in said
                ),
                tools,
            )
            rows[artifact.name, kind] = present(
                {name: there.get(name, ABSENT) for name in tools}
            )
            missing |= {*tools} - {*rows[artifact.name, kind]}
    jobs = {*lock.jobs, *(row.result.name for row in results)}
    locked = replace(lock, tools=scoped(rows), jobs=tuple(sorted(jobs)))
    return locked, tuple(sorted(missing))


def _tools_by_stage(results: Sequence[FromJob]) -> dict[str, Mapping[str, str]]:
    """
    Versions by the name or the kind of the stages that they hold for; "" is all.

    Raises:
        UsageInvalid: `lock.tools`: two jobs say different versions for the same stages.
    """
    found: dict[str, tuple[str, Mapping[str, str]]] = {}
    for row in results:
        built = [str(stage["name"]) for stage in row.result.stages]
        for at in [row.kind] if row.kind else built or [""]:
            name, tools = found.setdefault(at, (row.result.name, row.result.tools))
            if tools != row.result.tools:
                raise UsageInvalid(
                    f"{name} and {row.result.name} have other tools for"
                    f" {at or 'every stage'}",
                    code="lock.tools",
                    hints=(
                        f"say whose they are: `--tools-from compile={row.result.name}`",
                    ),
                )
    return {at: tools for at, (_, tools) in found.items()}


def write_lock(relocked: Relocked) -> None:
    """
    Put a lock beside its recipe, whole or not at all.

    Raises:
        UsageInvalid: `out.unwritable` or `out.disk-full`.
    """
    from lmi_build.store.files import explain_output_error, write_atomic

    try:
        write_atomic(relocked.file, lock_text(relocked.lock).encode())
    except OSError as error:
        raise explain_output_error(
            error, "writing the lock", relocked.file, option="another folder"
        ) from error


def read_result(file: Path) -> JobResult:
    """
    A job's result from a file.

    Raises:
        UsageInvalid: `lock.tools`.
    """
    try:
        return result_of(file.read_bytes(), str(file))
    except OSError as error:
        raise UsageInvalid(
            f"{file} cannot be read: {error.strerror}",
            code="lock.tools",
            hints=("name a job, or the JSON file of its result",),
        ) from error


def result_of(text: bytes, name: str) -> JobResult:
    """
    A job's result that says which tools its container has.

    Raises:
        UsageInvalid: `lock.tools`.
    """
    from lmi_build.values.job import result_from_json

    try:
        result = result_from_json(text)
    except ValueError as error:
        raise UsageInvalid(
            f"{name} is not the result of a job: {error}",
            code="lock.tools",
            hints=("take it from `jobs/NAME/` of the shared store",),
        ) from error
    if not result.tools:
        raise UsageInvalid(
            f"{name} does not say which tools the container of {result.name} has",
            code="lock.tools",
            hints=("take the result of a job that started; see `lmi-build job logs`",),
        )
    return result


def shared_result(job: str, settings: Settings) -> JobResult:
    """
    A job's result from the shared store; of several hosts, the first that says.

    Raises:
        UsageInvalid: `lock.tools`: no store is named, or the job left nothing there.
        RemoteFailed: The store cannot be reached.
    """
    from lmi_build.execute.stores import split_store_url
    from lmi_build.remote.access import StoreAccess
    from lmi_build.remote.s3_place import S3Place
    from lmi_build.values.publish import Transfer

    if not settings.store:
        raise UsageInvalid(
            f"job {job} cannot be looked up without a shared store",
            code="lock.tools",
            hints=(
                "name it: `--store s3://bucket/prefix`, or set LMI_BUILD_STORE",
                "or name the JSON file of its result: `--tools-from result.json`",
            ),
        )
    bucket, prefix = split_store_url(settings.store)
    place = S3Place(
        bucket,
        prefix,
        access=StoreAccess(to=settings.store),
        settings=settings,
        transfer=Transfer(),
    )
    with closing(place):
        base = f"jobs/{job}/"
        for name in sorted(place.listing(base)):
            stored = place.read(base + name)
            if stored is None or not name.endswith(".json"):
                continue
            with suppress(UsageInvalid):
                return result_of(stored.data, f"{settings.store}/{base}{name}")
    raise UsageInvalid(
        f"{settings.store} has no result of a job {job} that says its tools",
        code="lock.tools",
        hints=("`lmi-build job list` shows the jobs; it must have started",),
    )
