"""What every stage of a run shares, from its record's beginning to its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build import events
from lmi_build.execute.record import RunRecord
from lmi_build.execute.redact import Redactor
from lmi_build.values.result import BuildResult, StageResult, StageRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.events import Emit
    from lmi_build.store.interface import BuildStore
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """
    What every stage of a run shares.

    Args:
        store: Where results are.
        settings: The user's environment.
        record: Folder of this run.
        emit: Where events go.
        thorough: Whether files of results that are here are asked for in a shared
            store, too.
    """

    store: BuildStore
    settings: Settings
    record: RunRecord
    emit: Emit
    redactor: Redactor
    thorough: bool = False


def open_run(
    plan: Plan,
    stages: Sequence[Stage],
    *,
    store: BuildStore,
    settings: Settings,
    emit: Emit,
    thorough: bool = False,
) -> Context:
    """
    Begin the record of a run and say what it will build.

    Args:
        plan: What was asked for.
        stages: Those of its stages that are wanted.
        store: Where results are looked up and kept.
        settings: The user's environment.
        emit: Where events go; the record keeps them, too.
        thorough: See `Context`.
    """
    record = RunRecord.create(store.root, plan)
    context = Context(
        store=store,
        settings=settings,
        record=record,
        emit=record.tee(emit),
        redactor=Redactor(settings.secret_values()),
        thorough=thorough,
    )
    context.emit(
        events.PlanReady(recipe=plan.recipe, stages=tuple(s.name for s in stages))
    )
    return context


def result_of(
    plan: Plan, rows: Sequence[StageRow], context: Context, *, seconds: float
) -> BuildResult:
    """What a run that has ended well hands back."""
    return BuildResult(
        rows=tuple(rows),
        artifacts=_by_artifact(plan, rows),
        seconds=seconds,
        record_dir=context.record.folder,
    )


def _by_artifact(
    plan: Plan, rows: Sequence[StageRow]
) -> dict[str, dict[str, StageResult]]:
    """The results of each artifact by kind, as far as there are any."""
    by_key = {row.result.key: row.result for row in rows}
    return {
        artifact.name: {
            kind: by_key[key] for kind, key in artifact.stages.items() if key in by_key
        }
        for artifact in plan.artifacts
    }
