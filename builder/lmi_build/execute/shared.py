"""
Several hosts at one plan: each takes any stage that is ready and that nobody builds.

Every host runs the same loop over the same store; nobody tells anybody what to do. A
stage is ready when its inputs are in the store. The one who gets its lease builds it,
the others go on to the next. Where a host was lost, its lease ends and another host
goes on with what it left.
"""

from __future__ import annotations

import time
import zlib
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build import events
from lmi_build.errors import (
    Interrupted,
    LmiBuildError,
    SourceInvalid,
    error_from_json,
    error_to_json,
)
from lmi_build.execute.context import Context, open_run, result_of
from lmi_build.execute.executor import (
    build_stage,
    cached_row,
    finished,
    refuse_blocked,
    refuse_without_space,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmi_build.digest import Digest
    from lmi_build.events import Emit
    from lmi_build.store.interface import BuildStore
    from lmi_build.values.result import BuildResult, StageRow
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan, Stage

# Between two looks when everything that is ready is being built elsewhere.
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 15.0


@dataclass(kw_only=True, slots=True)
class _Work:
    """What is known of a plan's stages so far."""

    stages: tuple[Stage, ...]
    rows: dict[Digest, StageRow] = field(default_factory=dict)
    errors: dict[Digest, LmiBuildError] = field(default_factory=dict)

    def ready(self) -> list[Stage]:
        """Stages that can be built now: not done, not failed, inputs there."""
        mine = {stage.key for stage in self.stages}
        return [
            stage
            for stage in self.stages
            if stage.key not in self.rows
            and stage.key not in self.errors
            and all(k in self.rows or k not in mine for k in stage.inputs.values())
        ]


def execute_shared(
    plan: Plan,
    *,
    store: BuildStore,
    settings: Settings,
    emit: Emit,
    host: str,
    run: str,
    keys: Iterable[Digest] | None = None,
    pause_seconds: float = FIRST_PAUSE_SECONDS,
) -> BuildResult:
    """
    Build a plan together with other hosts that are told the same.

    Returns when every stage is in the store, whoever built it. A stage that fails is
    not tried again by any host of the run; everything that does not need it is built
    first.

    Args:
        plan: What to build.
        store: The shared store, behind this host's own.
        settings: The host's environment.
        emit: Where events go; what another host built is told as cached.
        host: This host's name.
        run: Name of the run, the same on all of its hosts.
        keys: Stages to build; None takes all. Inputs outside must be in the store.
        pause_seconds: Before the second look when nothing is free; it doubles.

    Raises:
        LmiBuildError: The first failed stage in the plan's order; or the store failed.
    """
    started = time.monotonic()
    wanted = set(keys) if keys is not None else {stage.key for stage in plan.stages}
    work = _Work(stages=tuple(s for s in plan.stages if s.key in wanted))
    context = open_run(plan, work.stages, store=store, settings=settings, emit=emit)
    ok = False
    try:
        with store.in_use():
            _refuse_absent_inputs(plan, work, store)
            _work_off(work, context, host=host, run=run, pause_seconds=pause_seconds)
        ok = not work.errors
    finally:
        rows = [work.rows[s.key] for s in work.stages if s.key in work.rows]
        seconds = time.monotonic() - started
        context.emit(finished(rows, ok=ok, seconds=seconds))
        # A record that cannot be written must not hide why the build failed.
        with nullcontext() if ok else suppress(LmiBuildError):
            context.record.close(plan, rows, ok=ok)
    for stage in work.stages:
        if stage.key in work.errors:
            raise work.errors[stage.key]
    return result_of(plan, rows, context, seconds=seconds)


def _refuse_absent_inputs(plan: Plan, work: _Work, store: BuildStore) -> None:
    """Refuse before any work when an input that nobody here makes is not there."""
    mine = {stage.key for stage in work.stages}
    outside = {key for s in work.stages for key in s.inputs.values()} - mine
    if not outside:
        return
    found = store.lookup_all(outside)
    # What is done already needs no inputs.
    done = store.lookup_all(mine)
    for stage in work.stages:
        for role, key in stage.inputs.items():
            if key in outside and found[key] is None and done[stage.key] is None:
                raise SourceInvalid(
                    f"{stage.name} needs {role} from {plan.stage(key).name},"
                    f" which is not in the store: {key}",
                    code="store.absent-input",
                    hints=("build that stage first, over the same store",),
                )


def _work_off(
    work: _Work, context: Context, *, host: str, run: str, pause_seconds: float
) -> None:
    told, pause = False, pause_seconds
    while ready := work.ready():
        if _find(ready, work, context):
            continue
        if _build_one(_turned(ready, host), work, context, run=run):
            pause = pause_seconds
            continue
        if not told:
            told = True
            _tell_waiting(ready[0], context)
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)


def _find(ready: list[Stage], work: _Work, context: Context) -> bool:
    """Take note of what is in the store by now."""
    found = context.store.lookup_all(stage.key for stage in ready)
    for stage in ready:
        result = found[stage.key]
        if result is not None:
            work.rows[stage.key] = cached_row(stage, result, context)
    return any(result is not None for result in found.values())


def _turned(ready: list[Stage], host: str) -> list[Stage]:
    """The same stages in an order of this host's, so that hosts seldom meet."""
    start = zlib.crc32(host.encode()) % len(ready)
    return ready[start:] + ready[:start]


def _build_one(ready: list[Stage], work: _Work, context: Context, *, run: str) -> bool:
    """Build the first stage that nobody builds; False when there is none."""
    store = context.store
    for stage in ready:
        with store.try_building(stage.key, run=run) as scratch:
            if scratch is None:
                failed = store.failure(stage.key)
                if failed is None:
                    continue
                work.errors[stage.key] = error_from_json(failed)
                return True
            result = store.lookup(stage.key)
            if result is not None:
                work.rows[stage.key] = cached_row(stage, result, context)
                return True
            try:
                refuse_blocked([stage])
                refuse_without_space([stage], store.root)
                work.rows[stage.key] = build_stage(stage, scratch, context)
            except Interrupted:
                raise
            except LmiBuildError as error:
                work.errors[stage.key] = error
                store.fail(stage.key, run=run, error=error_to_json(error))
            return True
    return False


def _tell_waiting(stage: Stage, context: Context) -> None:
    context.emit(
        events.StageNote(
            stage=stage.name,
            level="info",
            code="build.waiting",
            message="every stage that is ready is built by another host; waiting",
        )
    )
