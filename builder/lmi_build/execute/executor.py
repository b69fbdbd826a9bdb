"""Carrying out a plan: look up, else build in a worker, then commit."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from lmi_build import events
from lmi_build.errors import (
    DoesNotFit,
    Interrupted,
    LmiBuildError,
    ToolMissing,
    UsageInvalid,
)
from lmi_build.execute.context import Context, open_run, result_of
from lmi_build.execute.fetching import bring, bring_wanted, coming_bytes_of
from lmi_build.execute.launch import Attempt, run_worker
from lmi_build.text import join_words
from lmi_build.units import format_bytes
from lmi_build.values.result import BuildResult, StageResult, StageRow

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.digest import Digest
    from lmi_build.events import Emit
    from lmi_build.store.interface import BuildStore
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan, Stage


def execute(
    plan: Plan,
    *,
    store: BuildStore,
    settings: Settings,
    emit: Emit,
    until: str | None = None,
    thorough: bool = False,
) -> BuildResult:
    """
    Build what the store does not hold yet.

    Args:
        plan: What to build.
        store: Where results are looked up and kept.
        settings: The user's environment.
        emit: Where events go; they are also kept in the run's record.
        until: Kind of the last stage to build; None builds all.
        thorough: Also send again what a shared store has lost of results that are
            here, for those who have no other source.

    Raises:
        LmiBuildError: The first stage that failed; everything before it is kept.
    """
    started = time.monotonic()
    stages = _wanted(plan, until)
    cached = store.lookup_all(stage.key for stage in stages)
    missing = [stage for stage in stages if cached[stage.key] is None]
    refuse_blocked(missing)
    coming = coming_bytes_of(plan, missing, cached, store)
    refuse_without_space(missing, store.root, coming_bytes=coming)
    context = open_run(
        plan, stages, store=store, settings=settings, emit=emit, thorough=thorough
    )
    rows: list[StageRow] = []
    try:
        with store.in_use() if missing else nullcontext():
            rows.extend(_stage(stage, context) for stage in stages)
            bring_wanted(plan, rows, context)
    except BaseException:
        context.emit(finished(rows, ok=False, seconds=time.monotonic() - started))
        # A record that cannot be written must not hide why the build failed.
        with suppress(LmiBuildError):
            context.record.close(plan, rows, ok=False)
        raise
    seconds = time.monotonic() - started
    context.emit(finished(rows, ok=True, seconds=seconds))
    context.record.close(plan, rows, ok=True)
    return result_of(plan, rows, context, seconds=seconds)


def _wanted(plan: Plan, until: str | None) -> list[Stage]:
    """Every stage, or those that lead to the stages of one kind."""
    if until is None:
        return list(plan.stages)
    wanted: set[Digest] = {s.key for s in plan.stages if s.kind == until}
    if not wanted:
        kinds = tuple(dict.fromkeys(s.kind for s in plan.stages))
        raise UsageInvalid(
            f"the plan has no stage `{until}`",
            code="usage.no-stage",
            hints=(f"use {join_words(kinds)}",),
        )
    for stage in reversed(plan.stages):
        if stage.key in wanted:
            wanted |= set(stage.inputs.values())
    return [stage for stage in plan.stages if stage.key in wanted]


def refuse_blocked(stages: list[Stage]) -> None:
    """Refuse before any work when a stage that is needed cannot run here."""
    for stage in stages:
        if stage.blocker is not None:
            kind = DoesNotFit if stage.blocker.exit_code == 4 else ToolMissing  # noqa: PLR2004
            raise kind(
                f"{stage.name} cannot run here: {stage.blocker.message}",
                code=stage.blocker.code,
                hints=(stage.blocker.hint,),
            )


def refuse_without_space(
    stages: list[Stage], root: Path, *, coming_bytes: int = 0
) -> None:
    """
    Refuse what the disk cannot hold, before it is begun.

    Raises:
        DoesNotFit: `store.disk-too-small`.
    """
    if not stages and not coming_bytes:
        return
    existing = root
    while not existing.exists():
        existing = existing.parent
    needed = coming_bytes + sum(s.estimate.disk_bytes for s in stages)
    needed += max((s.estimate.scratch_bytes for s in stages), default=0)
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DoesNotFit(
            f"this build needs {format_bytes(needed)} of disk,"
            f" {format_bytes(free)} are free under {existing}",
            code="store.disk-too-small",
            hints=(
                "choose another disk: `--cache-dir DIR`",
                "or free some space: `lmi-build cache prune --older-than 30d`",
            ),
        )


def _stage(stage: Stage, context: Context) -> StageRow:
    store = context.store
    result = store.lookup(stage.key)
    if result is None:
        with store.building(stage.key, lambda: _waiting(stage, context)) as scratch:
            # Somebody else may have built it while we waited for the lock.
            result = store.lookup(stage.key)
            if result is None:
                return build_stage(stage, scratch, context)
    return cached_row(stage, result, context)


def cached_row(stage: Stage, result: StageResult, context: Context) -> StageRow:
    """The row of a result that is there; others find it too, from now on."""
    # What only this machine has is sent.
    if context.store.is_here(result):
        context.store.share(result, thorough=context.thorough)
    context.emit(
        events.StageCached(
            stage=stage.name,
            key=stage.key,
            digest=result.digest,
            out_bytes=result.out_bytes,
        )
    )
    return StageRow(name=stage.name, kind=stage.kind, result=result, cached=True)


def build_stage(stage: Stage, scratch: Path, context: Context) -> StageRow:
    """
    Build a stage whose inputs are in the store; the caller holds its key.

    Raises:
        LmiBuildError: It failed, or could not be kept.
    """
    log = context.record.log_path(stage)
    context.emit(events.StageStarted(stage=stage.name, key=stage.key, log=str(log)))
    for note in stage.notes:
        context.emit(
            events.StageNote(
                stage=stage.name,
                level=note.level,
                code=note.code,
                message=note.message,
            )
        )
    try:
        result = _attempt(stage, scratch, log, context)
    except KeyboardInterrupt:
        _failed(stage, log, context, code="build.interrupted", message="interrupted")
        raise Interrupted(
            f"{stage.name}: stopped; every finished stage is kept",
            code="build.interrupted",
            hints=("run the same command again to go on",),
        ) from None
    except LmiBuildError as error:
        _failed(
            stage,
            log,
            context,
            code=error.code,
            message=error.message,
            hints=error.hints,
        )
        raise
    context.emit(
        events.StageFinished(
            stage=stage.name,
            key=stage.key,
            digest=result.digest,
            seconds=result.measure.seconds,
            cpu_seconds=result.measure.cpu_seconds,
            peak_rss_bytes=result.measure.peak_rss_bytes,
            out_bytes=result.out_bytes,
        )
    )
    return StageRow(name=stage.name, kind=stage.kind, result=result, cached=False)


def _attempt(stage: Stage, scratch: Path, log: Path, context: Context) -> StageResult:
    store = context.store
    inputs = {}
    for role, key in stage.inputs.items():
        found = store.lookup(key)
        if found is None:
            raise ToolMissing(
                f"{stage.name}: the result of {role} vanished from the store",
                code="store.vanished",
                hints=("run the same command again; it is built anew",),
            )
        inputs[role] = scratch / "in" / role
        bring(found, stage.name, context)
        store.materialize(found, inputs[role])
    attempt = Attempt(
        stage=stage,
        inputs=inputs,
        scratch=scratch,
        state=store.state_dir(stage.key),
        log=log,
    )
    measure = run_worker(
        attempt,
        settings=context.settings,
        redactor=context.redactor,
        emit=context.emit,
    )
    return store.commit(
        stage.key,
        attempt.out,
        key_document=stage.key_document(),
        stage=stage.kind,
        measure=measure,
    )


def _waiting(stage: Stage, context: Context) -> None:
    context.emit(
        events.StageNote(
            stage=stage.name,
            level="info",
            code="build.waiting",
            message="another build is making this; waiting for it",
        )
    )


def _failed(
    stage: Stage,
    log: Path,
    context: Context,
    *,
    code: str,
    message: str,
    hints: tuple[str, ...] = (),
) -> None:
    context.emit(
        events.StageFailed(
            stage=stage.name,
            key=stage.key,
            code=code,
            message=message,
            hints=hints,
            log=str(log),
        )
    )


def finished(rows: list[StageRow], *, ok: bool, seconds: float) -> events.Event:
    """The last event of a run."""
    built = sum(not row.cached for row in rows)
    return events.BuildFinished(
        ok=ok,
        seconds=round(seconds, 3),
        num_built=built,
        num_cached=len(rows) - built,
    )
