"""Compiles a model for NeuronCores with a toolchain of its own, in a worker process."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.compile_cache import harvest_cache, seed_cache
from lmi_build.backends.neuronx.compile_checks import build_problems
from lmi_build.backends.neuronx.compile_plan import CompilePlan
from lmi_build.backends.neuronx.preflight import (
    Machine,
    Needs,
    older_driver,
    preflight,
    uses_device,
)
from lmi_build.backends.neuronx.toolchain import read_line
from lmi_build.backends.neuronx.trace_checks import encoder_problems
from lmi_build.backends.neuronx.workplace import (
    CACHE,
    CALL,
    RESULT,
    make_place,
    write_call,
)
from lmi_build.backends.running import ask_with, ended_with_us, run_logged
from lmi_build.errors import LmiBuildError, StageFailed, ToolMissing, Unsupported
from lmi_build.events import StageNote, StageProgress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.neuronx.workplace import Place
    from lmi_build.backends.running import Ran
    from lmi_build.events import Emit
    from lmi_build.spi import Job

# `module:attribute` of the stage, and what its code means.
ENTRY = f"{__name__}:run"
SALT = 1
RECORD = "neuron.json"
# What a loader's result is held against beside the plan, by loader: a function of the
# result, the model's folder and the call.
_FURTHER_CHECKS = {"trace": encoder_problems}
_KILLED = (
    "it was killed, most likely for want of memory: compile fewer graphs at once with"
    " `compile.options: {compilation_worker_count: 1}`"
)


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out` with a compiled model and the record of how it was made.

    Parameters: those of `CompilePlan`. Input: `source`, the model's folder, which is
    only read. Settings: `runner` (`local` or `container`), `image` of a container,
    `cache` (a folder for compiled graphs that outlives the build), `target` (an
    instance type), `host_bytes` and `disk_bytes` (what the build takes).

    Raises:
        ToolMissing: No device, or no toolchain of the release's versions.
        Unsupported: The devices here are of another kind than the target's.
        DoesNotFit: Cores, memory or disk are too few.
        StageFailed: The toolchain failed, or the model is not what was asked for.
    """
    plan = CompilePlan.from_json(job.params)
    work = job.state / "work"
    shared = _cache(job)
    _give_back(work, shared)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        place = make_place(job, plan, work)
        with ended_with_us(place.container.name if place.image else ""):
            _build(job, emit, plan, place)
    finally:
        _give_back(work, shared)
        shutil.rmtree(work, ignore_errors=True)


def _build(job: Job, emit: Emit, plan: CompilePlan, place: Place) -> None:
    needs = _needs(job, plan)
    machine = preflight(
        needs,
        ask=ask_with(place.surroundings),
        probe=place.probe(sorted(plan.versions)),
        out=place.work,
        where=place.name,
    )
    _tell_machine(job, emit, plan, place, machine)
    device = uses_device(machine.hardware, needs)
    if device:
        paths = tuple(x.path for x in machine.hardware.devices if not x.busy)
        place = replace(place, devices=paths)
    shared = _cache(job)
    if shared is not None:
        seed_cache(shared, place.work / CACHE, plan.compiler)
    write_call(place, plan, device=device)
    words = ["build", f"{place.root}/{CALL}", f"{place.root}/{RESULT}"]
    heard = _Heard(job, emit, int(plan.call["num_graphs"]))
    ran = run_logged(
        place.command(words), cwd=place.work, environment=place.surroundings, hear=heard
    )
    if ran.status != 0 or heard.fault is not None:
        raise _failed(job, ran, heard.fault)
    result = place.work / RESULT
    record = json.loads((result / RECORD).read_text("utf-8"))
    inside = (str(place.work), place.root, str(place.model))
    problems = build_problems(result, record, plan, paths=inside)
    further = _FURTHER_CHECKS.get(str(plan.call["loader"]))
    if further is not None and not problems:
        problems = further(result, place.model, plan.call)
    if problems:
        raise StageFailed(
            f"the compiled model is not what was asked for: {'; '.join(problems)}",
            code="neuronx.differs",
            hints=("nothing of it was kept; report what differs if it comes back",),
        )
    _deliver(result, job.out, {**record, **_circumstances(plan, place, machine, ran)})


class _Heard:
    """What the driver says while it runs, as progress and as its fault."""

    def __init__(self, job: Job, emit: Emit, total: int) -> None:
        self._job, self._emit, self._total = job, emit, total
        self._done = 0
        self.fault: Mapping[str, Any] | None = None
        self._tell()

    def __call__(self, line: str) -> None:
        said = read_line(line)
        if said is None:
            return
        if said["event"] == "graph":
            self._done = min(self._done + 1, self._total)
            self._tell()
        elif said["event"] == "fault":
            self.fault = said

    def _tell(self) -> None:
        self._emit(
            StageProgress(
                stage=self._job.stage, done=self._done, total=self._total, unit="graphs"
            )
        )


def _needs(job: Job, plan: CompilePlan) -> Needs:
    settings = job.settings
    return Needs(
        versions=plan.versions,
        target=str(settings.get("target", "")),
        num_cores=plan.num_cores,
        device_needed=plan.device_needed,
        host_bytes=_number(settings.get("host_bytes")),
        disk_bytes=_number(settings.get("disk_bytes")),
    )


def _tell_machine(
    job: Job, emit: Emit, plan: CompilePlan, place: Place, machine: Machine
) -> None:
    """What is not the release's own and may matter, though the build goes on."""

    def warn(code: str, message: str) -> None:
        emit(StageNote(stage=job.stage, level="warning", code=code, message=message))

    toolchain, hardware = machine.toolchain, machine.hardware
    if plan.prefix and toolchain.prefix != plan.prefix:
        warn(
            "neuronx.other-prefix",
            f"packages of {place.name} lie in {toolchain.prefix} (Python"
            f" {toolchain.python}), those of `{plan.release}` in {plan.prefix}; names"
            " of graphs have been seen to hang on it, so build in the release's own"
            " image where the model must load without compiling",
        )
    if newer := older_driver(hardware, plan.compiler):
        warn(
            "neuronx.old-driver",
            f"the driver here is {hardware.driver}, the release was made with {newer};"
            " an older one may not load what the compiler makes",
        )


def _failed(job: Job, ran: Ran, fault: Mapping[str, Any] | None) -> LmiBuildError:
    """The error of a driver that did not end well."""
    if fault is not None:
        kinds = {"tool": ToolMissing, "unsupported": Unsupported}
        kind: type[LmiBuildError] = kinds.get(str(fault["kind"]), StageFailed)
        tail = "" if kind is not StageFailed else _tail(ran)
        return kind(
            f"{job.stage}: {fault['message']}{tail}",
            code=str(fault["code"]),
            hints=tuple(map(str, fault["hints"])),
        )
    how = f"signal {-ran.status}" if ran.status < 0 else f"exit status {ran.status}"
    killed = ran.status in {-signal.SIGKILL, 128 + signal.SIGKILL}
    hints = (_KILLED,) if killed else ()
    return StageFailed(
        f"{job.stage}: the compilation ended with {how}{_tail(ran)}",
        code="neuronx.command-failed",
        hints=hints,
    )


def _tail(ran: Ran) -> str:
    return "".join(f"\n  | {line}" for line in ran.tail)


def _circumstances(
    plan: CompilePlan, place: Place, machine: Machine, ran: Ran
) -> dict[str, Any]:
    """What the driver cannot know of itself."""
    local = place.runner == "local"
    return {
        "release": plan.release,
        "loader": plan.call["loader"],
        "runner": place.runner,
        "image": place.image,
        "instance": machine.hardware.instance if machine.hardware.devices else "",
        "driver": machine.hardware.driver,
        "num_devices": len(machine.hardware.devices),
        "seconds": ran.seconds,
        "peak_rss_bytes": ran.peak_rss_bytes if local else None,
    }


def _deliver(result: Path, out: Path, record: Mapping[str, Any]) -> None:
    """Move a checked result to its place; the record comes last."""
    (result / RECORD).unlink()
    for path in sorted(result.iterdir()):
        shutil.move(str(path), out / path.name)
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    (out / RECORD).write_text(text, "utf-8")


def _cache(job: Job) -> Path | None:
    folder = str(job.settings.get("cache", ""))
    return Path(folder) if folder else None


def _give_back(work: Path, shared: Path | None) -> None:
    """Keep the graphs that were finished, also those of a build that was killed."""
    if shared is not None:
        harvest_cache(work / CACHE, shared)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
