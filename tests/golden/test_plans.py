"""
Every shipped recipe lowers to what it lowered to before.

The key documents stand in `plans/`; a change there is a change of keys, and every
user builds anew. Versions, handler and model are fixed, so that only our own code
can move a line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lmi_build.plan.planner import make_plan
from lmi_build.quantizers.calibration import calibration_digest
from lmi_build.recipe.load import load_recipe
from lmi_build.values.recipe import CalibrationSpec
from planned_models import ALL, world_of

GOLDEN = Path(__file__).parent / "plans"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_plan_is_what_it_was(path: Path, update_golden: bool) -> None:  # noqa: FBT001
    """The key document of every stage is the recorded one."""
    recipes = load_recipe(path)
    world = world_of(recipes, path.parent.name)

    plan = make_plan(path.stem, recipes, world)

    document = {stage.name: stage.key_document() for stage in plan.stages}
    text = json.dumps(document, indent=1, sort_keys=True, default=dict) + "\n"
    # Keys follow from the documents; Python's own text differs between its releases.
    names = {stage.key: f"<{stage.name}>" for stage in plan.stages}
    names[calibration_digest(CalibrationSpec())] = "<python-docs>"
    for digest, name in names.items():
        text = text.replace(digest, name)
    text = re.sub(r'("digest": )"sha256:[0-9a-f]{64}"', r'\1"<digest>"', text)
    golden = GOLDEN / f"{path.parent.name}.{path.stem}.json"
    if update_golden:
        golden.write_text(text)
    assert golden.read_text() == text


def test_no_plan_names_a_place() -> None:
    """No key document of a shipped recipe holds a path of a machine."""
    for path in GOLDEN.glob("*.json"):
        assert "/nowhere" not in path.read_text(), path.name
