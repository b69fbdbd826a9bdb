"""A plan as a file, so that exactly it can be built later or elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest
from lmi_build.errors import UsageInvalid
from lmi_build.values.stage import (
    Blocker,
    Estimate,
    Plan,
    PlannedArtifact,
    Stage,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SAVED_SCHEMA = "lmi-build/plan/v1"


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The whole plan; a stage's key stands beside what it was made from."""
    return {
        "schema": SAVED_SCHEMA,
        "recipe": plan.recipe,
        "stages": [{"key": stage.key, **asdict(stage)} for stage in plan.stages],
        "artifacts": [asdict(artifact) for artifact in plan.artifacts],
    }


def plan_from_json(text: bytes, file: str) -> Plan:
    """
    Read what `plan_to_json` wrote.

    Raises:
        UsageInvalid: It is not such a file, or somebody changed it.
    """
    try:
        document = json.loads(text)
        return Plan(
            recipe=_recipe(document),
            stages=tuple(_stage(row) for row in document["stages"]),
            artifacts=tuple(
                PlannedArtifact(
                    name=row["name"],
                    stages={kind: Digest(key) for kind, key in row["stages"].items()},
                )
                for row in document["artifacts"]
            ),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UsageInvalid(
            f"{file} is not a plan of this version ({type(error).__name__}: {error})",
            code="plan.unreadable",
            hints=("make it anew: `lmi-build plan RECIPE --out FILE`",),
        ) from error


def _recipe(document: Mapping[str, Any]) -> str:
    if document["schema"] != SAVED_SCHEMA:
        raise ValueError(f"its schema is {document['schema']!r}")
    return str(document["recipe"])


def _stage(row: Mapping[str, Any]) -> Stage:
    fields = dict(row)
    key = fields.pop("key")
    blocker = fields.pop("blocker")
    stage = Stage(
        **{
            **fields,
            "secrets": tuple(fields["secrets"]),
            "estimate": Estimate(**fields["estimate"]),
        },
        blocker=Blocker(**blocker) if blocker else None,
    )
    if stage.key != key:
        raise ValueError(f"the stage {stage.name} does not make its key")
    return stage
