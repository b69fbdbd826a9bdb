"""What a build would do with each stage of a plan."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.plan.explain import Change
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan, Stage


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
    from lmi_build.execute.stores import open_store
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
