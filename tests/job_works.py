"""Recipes planned as jobs, with nothing of this machine in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.jobs.union import Work, common_spec
from lmi_build.jobs.wheel import Wheel
from lmi_build.plan.planner import make_plan
from lmi_build.recipe.load import load_recipe
from planned_models import world_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmi_build.values.recipe import Recipe

ROLE = "arn:aws:iam::111122223333:role/lmi-build"
OWN_IMAGE = "111122223333.dkr.ecr.us-east-1.amazonaws.com/lmi-build:1"
WHEEL = Wheel(name="lmi_build-0-py3-none-any.whl", data=b"the package")
BASE = (
    "job.store=s3://my-models/lmi-build",
    f"job.role={ROLE}",
    "job.region=us-east-1",
)


def overrides_for(path: Path) -> tuple[str, ...]:
    """What a shipped recipe needs to run as jobs; ONNX Runtime is in no image."""
    if "onnxruntime" in path.name:
        return (*BASE, f"job.image={OWN_IMAGE}")
    return BASE


def work_of(
    path: Path, overrides: Sequence[str] = (), *, kind: str = "gguf", folder: str = ""
) -> Work:
    """A recipe file planned, with job settings over its own."""
    recipes = load_recipe(path, overrides=overrides)
    return work_of_recipes(recipes, folder or path.parent.name, kind=kind)


def work_of_recipes(
    recipes: Sequence[Recipe], folder: str, *, kind: str = "gguf"
) -> Work:
    """Recipes of one model planned together."""
    world = world_of(recipes, folder, kind=kind)
    spec = common_spec(recipes)
    return Work(
        plan=make_plan(recipes[0].name, recipes, world),
        recipes={recipe.name: recipe for recipe in recipes},
        facts=world.facts,
        spec=spec,
        store=spec.store or "",
        region=spec.region or "",
        publish={
            recipe.name: section
            for recipe in recipes
            if isinstance(section := recipe.document.get("publish"), dict)
        },
    )
