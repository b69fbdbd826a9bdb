"""
Disk, memory and time of a job, from the estimates of its stages.

A host keeps the results it reads and those it makes, and the scratch of one stage at a
time. What is asked for is a fifth more, since estimates of compilers are rules of
thumb, and a fixed part for the image's own files, logs and the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.sizing.build_hours import stage_hours
from lmi_build.units import GiB

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lmi_build.digest import Digest
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.stage import Stage

GB = 10**9
_FIXED_BYTES = 10 * GB
_MARGIN = 1.2
# Of a host's memory; the rest is the kernel's, the agent's and our own process's.
USABLE_SHARE = 0.95
# Starting, pulling the image, reading inputs and sending results.
_START_SECONDS = 3600
_HOUR_SECONDS = 3600
# Rules of thumb are high ends already; twice that stops what hangs.
_PATIENCE = 2
# The API's: nine days of a Processing job.
MAX_SECONDS = 777_600
DEFAULT_SECONDS = 24 * _HOUR_SECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """
    What a set of stages asks of one host.

    Args:
        disk_bytes: Inputs, results and the largest scratch.
        ram_bytes: The largest stage's memory.
        ram_stage: Kind of that stage.
        seconds: High end of all stages one after another; None where nobody knows.
    """

    disk_bytes: int
    ram_bytes: int
    ram_stage: str
    seconds: float | None

    @property
    def volume_gb(self) -> int:
        """GB to ask for."""
        return math.ceil((_FIXED_BYTES + _MARGIN * self.disk_bytes) / GB)

    @property
    def max_runtime_seconds(self) -> int:
        """When the job may be stopped, in whole hours."""
        if self.seconds is None:
            return DEFAULT_SECONDS
        hours = math.ceil((_START_SECONDS + _PATIENCE * self.seconds) / _HOUR_SECONDS)
        return min(hours * _HOUR_SECONDS, MAX_SECONDS)


def demand(
    stages: Sequence[Stage],
    inputs: Iterable[Stage],
    seconds: Mapping[Digest, float | None],
    keys: Sequence[Digest],
) -> Demand:
    """
    What a job's stages ask of its host.

    Args:
        stages: That it builds.
        inputs: Whose results it reads and does not build.
        seconds: Key to the high end of its time.
        keys: Of `stages`.
    """
    estimates = [stage.estimate for stage in stages]
    widest = max(stages, key=lambda stage: stage.estimate.ram_bytes)
    times = [seconds[key] for key in keys]
    return Demand(
        disk_bytes=sum(stage.estimate.disk_bytes for stage in inputs)
        + sum(e.disk_bytes for e in estimates)
        + max(e.scratch_bytes for e in estimates),
        ram_bytes=widest.estimate.ram_bytes,
        ram_stage=widest.kind,
        seconds=None if None in times else sum(t for t in times if t is not None),
    )


def stage_seconds(stage: Stage, recipe: Recipe, facts: ModelFacts) -> float | None:
    """The high end of a stage's time, in seconds; None where nobody knows."""
    found = stage_hours(
        stage.kind,
        num_params=sum(tensor.num_elements for tensor in facts.tensors),
        num_bytes=max(facts.fetch_bytes, stage.estimate.disk_bytes),
        method=recipe.quantize.method,
        backend=recipe.compile.backend,
    )
    return None if found is None else found.high * _HOUR_SECONDS


def fits_ram(ram_bytes: int, memory_bytes: int) -> bool:
    """Whether a stage fits a host."""
    return ram_bytes <= memory_bytes * USABLE_SHARE


def host_bytes(ram_bytes: int) -> int:
    """The least memory of a host that a stage fits, in bytes, in whole GiB."""
    return math.ceil(ram_bytes / USABLE_SHARE / GiB) * GiB
