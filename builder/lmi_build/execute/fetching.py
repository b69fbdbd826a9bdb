"""Results of a shared store, brought to this machine when something needs them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from lmi_build import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import Digest
    from lmi_build.execute.context import Context
    from lmi_build.store.interface import BuildStore
    from lmi_build.values.result import StageResult, StageRow
    from lmi_build.values.stage import Plan, Stage

# What is laid out for the user; everything else is read where it lies.
_WANTED_HERE = frozenset({"package", "verify"})


# Events while a result is fetched.
_PROGRESS_STEPS = 100


def bring_wanted(plan: Plan, rows: list[StageRow], context: Context) -> None:
    """Fetch what the user will be given, where it was found in a shared store."""
    wanted = _wanted_keys(plan)
    for row in rows:
        if row.result.key in wanted:
            bring(row.result, row.name, context)


def _wanted_keys(plan: Plan) -> set[Digest]:
    return {
        key
        for artifact in plan.artifacts
        for kind, key in artifact.stages.items()
        if kind in _WANTED_HERE
    }


def bring(result: StageResult, name: str, context: Context) -> None:
    """Make sure that a result lies on this machine, and tell of its bytes."""
    if context.store.is_here(result):
        return
    lock, done, told = threading.Lock(), 0, 0

    def got(num_bytes: int) -> None:
        nonlocal done, told
        with lock:
            done += num_bytes
            # An event for each megabyte of a large model would drown the others.
            if done - told < result.out_bytes // _PROGRESS_STEPS:
                return
            told = done
            event = events.StageProgress(
                stage=name, done=done, total=result.out_bytes, unit="bytes"
            )
        context.emit(event)

    context.store.bring([result], got)


def coming_bytes_of(
    plan: Plan,
    missing: list[Stage],
    cached: Mapping[Digest, StageResult | None],
    store: BuildStore,
) -> int:
    """Bytes that will be fetched from a shared store: inputs, and what is wanted."""
    keys = _wanted_keys(plan) | {k for s in missing for k in s.inputs.values()}
    found = [result for key in keys if (result := cached.get(key)) is not None]
    return sum(result.out_bytes for result in found if not store.is_here(result))
