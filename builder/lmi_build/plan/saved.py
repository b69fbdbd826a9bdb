"""A plan as a file, so that exactly it can be built later or elsewhere."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from lmi_build.digest import Digest
from lmi_build.errors import UsageInvalid
from lmi_build.values.stage import (
    Blocker,
    Estimate,
    Note,
    Plan,
    PlannedArtifact,
    Stage,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SAVED_SCHEMA = "lmi-build/plan/v1"
# Names of a plan become parts of paths; a saved one may come from a stranger.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The whole plan; a stage's key stands beside what it was made from."""
    return {
        "schema": SAVED_SCHEMA,
        "recipe": plan.recipe,
        "stages": [_stage_document(stage) for stage in plan.stages],
        "artifacts": [asdict(artifact) for artifact in plan.artifacts],
    }


def _stage_document(stage: Stage) -> dict[str, Any]:
    """
    A stage's fields, as `asdict` has them.

    Its parameters are JSON already and are not copied: they are most of a plan.
    """
    plain = {item.name: getattr(stage, item.name) for item in fields(stage)}
    return {
        "key": stage.key,
        **plain,
        "estimate": asdict(stage.estimate),
        "blocker": asdict(stage.blocker) if stage.blocker else None,
        "notes": [asdict(note) for note in stage.notes],
    }


def plan_from_json(text: bytes, file: str) -> Plan:
    """
    Read what `plan_to_json` wrote.

    Raises:
        UsageInvalid: It is not such a file, or somebody changed it.
    """
    try:
        document = json.loads(text)
        recipe = _recipe(document)
        stages = tuple(_stage(row) for row in document["stages"])
        keys = {stage.key for stage in stages}
        return Plan(
            recipe=recipe,
            stages=stages,
            artifacts=tuple(_artifact(row, keys) for row in document["artifacts"]),
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
    return _plain(document["recipe"])


def _plain(name: object) -> str:
    """Refuse a name that could leave the folder it becomes a part of."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r} is not a name")
    return name


def _artifact(row: Mapping[str, Any], keys: set[Digest]) -> PlannedArtifact:
    stages = {_plain(kind): Digest(key) for kind, key in row["stages"].items()}
    for kind, key in stages.items():
        if key not in keys:
            raise ValueError(f"the {kind} stage of {row['name']} is not in it")
    return PlannedArtifact(name=_plain(row["name"]), stages=stages)


def _stage(row: Mapping[str, Any]) -> Stage:
    fields = dict(row)
    key = fields.pop("key")
    blocker = fields.pop("blocker")
    stage = Stage(
        **{
            **fields,
            "secrets": tuple(fields["secrets"]),
            "estimate": Estimate(**fields["estimate"]),
            "notes": tuple(Note(**note) for note in fields["notes"]),
        },
        blocker=Blocker(**blocker) if blocker else None,
    )
    if stage.key != key:
        raise ValueError(f"the stage {stage.name} does not make its key")
    for role in stage.inputs:
        _plain(role)
    return stage
