"""
A program that uses the library as its users do; it must pass mypy --strict.

It is checked, not run: `tests/unit/test_public_api.py` runs the same names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lmi_build
from lmi_build.events import Event, StageFinished


def watch(event: Event) -> None:
    """Print what each stage cost."""
    if isinstance(event, StageFinished):
        sys.stdout.write(f"{event.stage} {event.seconds} {event.peak_rss_bytes}\n")


def build_and_publish(recipe: Path, bucket: str) -> str:
    """Build a recipe and publish its first artifact; returns where it lies."""
    settings: lmi_build.Settings = lmi_build.settings_from_environ(os.environ)
    recipes: tuple[lmi_build.Recipe, ...] = lmi_build.load_recipe(
        recipe, overrides=["verify.num_samples=4"]
    )
    plan: lmi_build.Plan = lmi_build.make_plan(recipes, settings)
    result: lmi_build.BuildResult = lmi_build.build(plan, settings, emit=watch)
    name = plan.artifacts[0].name
    tree, digest = lmi_build.write_artifact(result, name, Path("artifacts"), settings)
    place = lmi_build.access(f"s3://{bucket}/{name}", region="eu-central-1")
    receipt = lmi_build.publish(tree, place, settings, emit=watch)
    checked = lmi_build.verify_artifact(lmi_build.access(receipt.uri), settings)
    checked.refuse()
    assert receipt.manifest_digest == digest
    return receipt.uri
