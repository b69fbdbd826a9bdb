"""Small plans over `tests/fixtures/stages`, for tests of the executor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.values.settings import Settings
from lmi_build.values.stage import Plan, PlannedArtifact, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import Digest, JSONValue

STAGES = Path(__file__).parent / "fixtures" / "stages"


def settings(root: Path, **secrets: Mapping[str, str]) -> Settings:
    """Settings with a store below `root`, whose workers find the sample stages."""
    return Settings(
        cache_dir=root / "store",
        worker_environment={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(STAGES)},
        secrets=secrets,
    )


def stage(
    kind: str,
    run: str = "write",
    *,
    text: str = "x",
    inputs: Mapping[str, Digest] | None = None,
    job: Mapping[str, JSONValue] | None = None,
) -> Stage:
    """One stage of a sample plan."""
    return Stage(
        name=f"sample/{kind}",
        kind=kind,
        params={"text": text},
        inputs=inputs or {},
        tools={},
        platform="any",
        salt=1,
        entry=f"sample_stages:{run}",
        job=job or {},
    )


def plan(*stages: Stage) -> Plan:
    """A plan of these stages that makes one artifact."""
    kinds = {item.kind: item.key for item in stages}
    return Plan(
        recipe="sample",
        stages=stages,
        artifacts=(PlannedArtifact(name="sample", stages=kinds),),
    )


def chain(text: str = "a", **job: JSONValue) -> Plan:
    """Fetch -> quantize -> compile, each adding a letter."""
    first = stage("fetch", text=text, job=job)
    second = stage("quantize", text="b", inputs={"model": first.key}, job=job)
    third = stage("compile", text="c", inputs={"checkpoint": second.key}, job=job)
    return plan(first, second, third)
