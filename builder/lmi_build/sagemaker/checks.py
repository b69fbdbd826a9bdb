"""What can be known to go wrong, said in a job's first minute, with numbers."""

from __future__ import annotations

import math
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.errors import DoesNotFit, ToolMissing
from lmi_build.quantizers.memory import CGROUP_FILES
from lmi_build.toolchains.environment import pinned_toolchain
from lmi_build.toolchains.versions import installed_versions
from lmi_build.units import GiB, format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.digest import Digest
    from lmi_build.values.result import StageResult
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Stage

ABSENT = "absent"
_LIMIT_FILES = tuple(limit for limit, _ in CGROUP_FILES)
# Keeps its activations on disk where they do not fit, and refuses by itself what does
# not fit even so: its estimate is what it would like to have.
_SPILLS = "lmi_build.quantizers.builtin"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """
    What this host has.

    Args:
        free_disk_bytes: On the volume of the store.
        memory_bytes: Of the host, or of the container where that is less.
    """

    free_disk_bytes: int
    memory_bytes: int


def look_around(cache_dir: Path) -> Machine:
    """Measure this host; `cache_dir` need not exist."""
    existing = cache_dir
    while not existing.exists():
        existing = existing.parent
    return Machine(
        free_disk_bytes=shutil.disk_usage(existing).free,
        memory_bytes=memory_bytes(),
    )


def memory_bytes(
    meminfo: Path = Path("/proc/meminfo"),
    limit_files: Sequence[str] = _LIMIT_FILES,
) -> int:
    """
    Memory of this host, or of its container where that is less.

    Returns:
        Bytes; a very large number where the system does not tell.
    """
    found = [1 << 62]
    with suppress(OSError):
        lines = meminfo.read_text("utf-8").splitlines()
        totals = [line for line in lines if line.startswith("MemTotal:")]
        found += [int(line.split()[1]) << 10 for line in totals]
    for name in limit_files:
        with suppress(OSError):
            text = Path(name).read_text("utf-8").strip()
            if text != "max":
                found.append(int(text))
    return min(found)


def versions_here(stages: Sequence[Stage], settings: Settings) -> dict[str, str]:
    """
    Version of every tool that stages name.

    A tool that only toolchains have is the toolchain's; toolchains bring their own
    pins along, so what a lock has to learn of a container is what lies outside them.

    Returns:
        Tool to version, `absent` where it is not installed.
    """
    found: dict[str, str] = {}
    for stage in sorted(stages, key=lambda stage: not stage.toolchain):
        for name, version in _tools(stage, settings).items():
            found[name] = version or ABSENT
    return dict(sorted(found.items()))


def _tools(stage: Stage, settings: Settings) -> Mapping[str, str | None]:
    if not stage.toolchain:
        return installed_versions(stage.tools)
    pins = pinned_toolchain(stage.toolchain, settings).versions
    return {name: pins.get(name) for name in stage.tools}


def refuse_other_tools(
    stages: Sequence[Stage], settings: Settings, *, name: str
) -> None:
    """
    Compare the versions that a plan was made for with this container's.

    Args:
        stages: Those that have to be built.
        settings: Where toolchains are.
        name: The job's, for the way out.

    Raises:
        ToolMissing: `job.other-tools` names every difference;
            `job.foreign-entry`: nothing here can run a stage.
    """
    wrong: dict[str, tuple[str, str]] = {}
    for stage in stages:
        if not _can_run(stage.entry):
            raise ToolMissing(
                f"{stage.name} runs `{stage.entry}`, which is not in this container",
                code="job.foreign-entry",
                hints=("use an image that has the plugin: `job.image` in the recipe",),
            )
        for tool, version in _tools(stage, settings).items():
            planned = stage.tools[tool]
            if (version or ABSENT) != planned:
                wrong[tool] = (planned, version or ABSENT)
    if wrong:
        listed = ", ".join(
            f"{tool} {planned} here {here}"
            for tool, (planned, here) in sorted(wrong.items())
        )
        raise ToolMissing(
            f"the plan was made for other tools than this container has: {listed}",
            code="job.other-tools",
            hints=(
                f"plan for this container: `lmi-build lock RECIPE --tools-from {name}`",
                "or name the image that the plan was made for: `job.image`",
            ),
        )


def refuse_absent_inputs(
    stages: Sequence[Stage], known: Mapping[Digest, StageResult | None]
) -> None:
    """
    Refuse to start without what another job, or the user's machine, had to make.

    Args:
        stages: Those that have to be built.
        known: Result of every input that no stage of this job makes.

    Raises:
        ToolMissing: `job.absent-input`.
    """
    for stage in stages:
        for role, key in stage.inputs.items():
            if key in known and known[key] is None:
                raise ToolMissing(
                    f"{stage.name} needs the result of {role} ({key}), which is not in"
                    " the store and not made by this job",
                    code="job.absent-input",
                    hints=(
                        "`lmi-build job submit RECIPE` starts what is missing first",
                    ),
                )


def _can_run(entry: str) -> bool:
    try:
        return find_spec(entry.partition(":")[0]) is not None
    except ModuleNotFoundError:
        return False


def refuse_too_small(
    stages: Sequence[Stage], inputs_bytes: int, machine: Machine
) -> None:
    """
    Compare a plan's estimates with this host.

    Args:
        stages: Those that have to be built here.
        inputs_bytes: Of their inputs that come out of the shared store.
        machine: From `look_around`.

    Raises:
        DoesNotFit: `job.disk-too-small`, `job.memory-too-small`.
    """
    if not stages:
        return
    made = sum(stage.estimate.disk_bytes for stage in stages)
    needed = made + inputs_bytes
    needed += max(stage.estimate.scratch_bytes for stage in stages)
    if needed > machine.free_disk_bytes:
        short = math.ceil((needed - machine.free_disk_bytes) / GiB)
        raise DoesNotFit(
            f"this job needs {format_bytes(needed)} of disk"
            f" ({format_bytes(inputs_bytes)} of inputs, {format_bytes(made)} of"
            f" results), {format_bytes(machine.free_disk_bytes)} are free",
            code="job.disk-too-small",
            hints=(f"raise `job.volume_size_gb` by {short} GB",),
        )
    fixed = [stage for stage in stages if not stage.entry.startswith(_SPILLS)]
    if not fixed:
        return
    largest = max(fixed, key=lambda stage: stage.estimate.ram_bytes)
    if largest.estimate.ram_bytes > machine.memory_bytes:
        raise DoesNotFit(
            f"{largest.name} needs {format_bytes(largest.estimate.ram_bytes)} of"
            f" memory, this host has {format_bytes(machine.memory_bytes)}",
            code="job.memory-too-small",
            hints=(
                f"choose an instance with more memory: `job.instances.{largest.kind}`",
            ),
        )
