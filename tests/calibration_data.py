"""Calibration data resolved and brought as a build would, without a build."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.events import ignore
from lmi_build.sources.dataset import (
    dataset_settings,
    dataset_stage_params,
    resolve_dataset,
)
from lmi_build.sources.dataset_fetch import run
from lmi_build.spi import Job
from lmi_build.values.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.dataset import DatasetFacts
    from lmi_build.values.recipe import CalibrationSpec


def pinned(
    spec: CalibrationSpec, folder: Path, settings: Settings | None = None
) -> CalibrationSpec:
    """The spec with its files resolved, as the planner is given it."""
    settings = settings or Settings(cache_dir=folder / "cache")
    facts = resolve_dataset(spec, settings=settings, base=folder)
    return replace(spec, facts=facts)


def stage_job(
    facts: DatasetFacts, folder: Path, settings: Settings | None = None
) -> Job:
    """The calibration stage's job; what an earlier one left in `state` is kept."""
    settings = settings or Settings(cache_dir=folder / "cache")
    out, state = folder / "data", folder / "data-state"
    out.mkdir(parents=True)
    state.mkdir(exist_ok=True)
    return Job(
        stage="tiny/calibration",
        params=dataset_stage_params(facts),
        inputs={},
        out=out,
        state=state,
        settings=dataset_settings(facts, settings),
    )


def bring(facts: DatasetFacts, folder: Path, settings: Settings | None = None) -> Path:
    """Run the calibration stage; its result."""
    job = stage_job(facts, folder, settings)
    run(job, ignore)
    return job.out
