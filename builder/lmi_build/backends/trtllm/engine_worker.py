"""Builds an engine on the machine with the GPU, in a worker process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.backends.containers import docker_run
from lmi_build.backends.folder import local_folder
from lmi_build.backends.host import free_host_bytes
from lmi_build.backends.running import ask_with, ended_with_us, run_logged
from lmi_build.backends.trtllm.command import (
    ENGINE,
    TIMING_CACHE,
    convert_checkpoint,
    trtllm_build,
)
from lmi_build.backends.trtllm.engine_checks import Expected, engine_problems
from lmi_build.backends.trtllm.engine_folder import read_engine_folder
from lmi_build.backends.trtllm.lowering import EnginePlan
from lmi_build.backends.trtllm.preflight import (
    Machine,
    Needs,
    preflight,
)
from lmi_build.backends.trtllm.toolchain import same_as_far
from lmi_build.backends.trtllm.workplace import make_place
from lmi_build.catalog.trtllm_flags import build_flags
from lmi_build.errors import StageFailed
from lmi_build.events import StageNote, StageProgress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.backends.trtllm.arguments import Build
    from lmi_build.backends.trtllm.workplace import Place
    from lmi_build.events import Emit
    from lmi_build.spi import Job

RECORD = "engine.json"


def run(job: Job, emit: Emit) -> None:
    """
    Fill `job.out` with an engine folder and the record of how it was built.

    Settings: `runner`, `image` of a container, `timing_cache` (a folder that outlives
    the build), `examples` (TensorRT-LLM's, for its converter), `target`, and what the
    build takes: `gpu_bytes`, `host_bytes`, `disk_bytes`.

    Raises:
        ToolMissing: No GPU, or no TensorRT-LLM of the release's version (`trtllm.*`).
        Unsupported: The GPU is another one than the target's.
        DoesNotFit: Memory or disk is too small.
        StageFailed: A command failed, or the engine is not what was asked for.
    """
    plan = EnginePlan.from_json(job.params)
    work = job.state / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        place = make_place(job, plan, work)
        with ended_with_us(place.container.name if place.image else ""):
            machine = _preflight(job, plan, place)
            _tell_machine(job, emit, plan, machine)
            _build(job, emit, plan, place, machine)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _build(
    job: Job, emit: Emit, plan: EnginePlan, place: Place, machine: Machine
) -> None:
    cache = _cache_file(job, machine)
    if cache is not None and cache.is_file():
        shutil.copyfile(cache, place.work / TIMING_CACHE)
    workers = _workers(job, plan, machine)
    place = place.on(machine.gpus[:workers])
    commands = []
    if plan.conversion is not None:
        commands.append(convert_checkpoint(plan.conversion, workers=1))
    flags = build_flags(plan.flags)
    commands += [trtllm_build(build, flags, workers=workers) for build in plan.builds]
    seconds, peak = 0.0, 0
    for done, words in enumerate(commands):
        _progress(job, emit, done, len(commands))
        ran = run_logged(
            place.command(words), cwd=place.work, environment=place.variables
        )
        if ran.status != 0:
            raise _failed(job, words, ran.status, ran.tail)
        seconds, peak = seconds + ran.seconds, max(peak, ran.peak_rss_bytes)
    _progress(job, emit, len(commands), len(commands))
    engine = place.work / ENGINE
    _check(engine, plan)
    record = {
        "schema": "lmi-build/engine/v1",
        "gpu": machine.gpus[0].name,
        "compute_capability": machine.gpus[0].compute_capability,
        "driver": machine.gpus[0].driver,
        "tensorrt": machine.toolchain.tensorrt,
        "trtllm": machine.toolchain.trtllm,
        "release": plan.release,
        "runner": place.runner,
        "image": place.image,
        "commands": commands,
        "seconds": round(seconds, 3),
        "peak_rss_bytes": peak if place.runner == "local" else None,
    }
    _check_portable(engine, place.work)
    _deliver(engine, job.out, plan.builds, record)
    if cache is not None and (place.work / TIMING_CACHE).is_file():
        _keep(place.work / TIMING_CACHE, cache)


def _preflight(job: Job, plan: EnginePlan, place: Place) -> Machine:
    settings = job.settings
    needs = Needs(
        trtllm=plan.trtllm,
        compute_capability=plan.compute_capability,
        target=str(settings.get("target") or plan.device),
        num_gpus=1,
        gpu_bytes=_number(settings.get("gpu_bytes")),
        host_bytes=_number(settings.get("host_bytes")),
        disk_bytes=_number(settings.get("disk_bytes")),
    )
    if place.runner == "local":
        prefix = [sys.executable]
    else:
        probe = replace(place.container, mounts=(), environment={})
        prefix = docker_run(probe, ["python3"])
    return preflight(
        needs,
        ask=ask_with(place.variables),
        prefix=prefix,
        out=place.work,
        where=place.name,
        visible=place.variables.get("CUDA_VISIBLE_DEVICES", ""),
    )


def _workers(job: Job, plan: EnginePlan, machine: Machine) -> int:
    """As many ranks at once as there are GPUs and as the host's memory holds."""
    each = _number(job.settings.get("host_bytes"))
    room = free_host_bytes() // each if each else plan.num_ranks
    return max(1, min(plan.num_ranks, len(machine.gpus), room))


def _tell_machine(job: Job, emit: Emit, plan: EnginePlan, machine: Machine) -> None:
    """What is not the target's own and may matter, though the build goes on."""

    def warn(code: str, message: str) -> None:
        emit(StageNote(stage=job.stage, level="warning", code=code, message=message))

    gpu = machine.gpus[0]
    if plan.device and plan.device not in gpu.name:
        warn(
            "trtllm.other-gpu",
            f"kernels are chosen by trying them on a {gpu.name}; the target has an"
            f" {plan.device} of the same compute capability {plan.compute_capability},"
            " where others may be faster",
        )
    tensorrt = machine.toolchain.tensorrt
    if not same_as_far(plan.tensorrt, tensorrt):
        warn(
            "trtllm.other-tensorrt",
            f"the engine is built with TensorRT {tensorrt}, the catalogue says that"
            f" `{plan.release}` has {plan.tensorrt}; only the same version loads it, so"
            " build in the release's own image",
        )


def _progress(job: Job, emit: Emit, done: int, total: int) -> None:
    emit(StageProgress(stage=job.stage, done=done, total=total, unit="commands"))


def _failed(
    job: Job, words: Sequence[str], status: int, tail: Sequence[str]
) -> StageFailed:
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    said = "\n".join(f"  | {line}" for line in tail)
    killed = status in {-signal.SIGKILL, 128 + signal.SIGKILL}
    hints = ("it was killed, most likely for want of memory",) if killed else ()
    return StageFailed(
        f"{job.stage}: `{words[0]}` ended with {how}\n{said}",
        code="trtllm.command-failed",
        hints=(*hints, f"the command was: {' '.join(words)}"),
    )


def _check(engine: Path, plan: EnginePlan) -> None:
    """Refuse an engine that is not what was asked for, with every difference."""
    said: list[str] = []
    hints: list[str] = []
    for build in plan.builds:
        folder = read_engine_folder(local_folder(engine / build.engine))
        expected = Expected(
            trtllm=plan.trtllm,
            tensor_parallel_size=plan.tensor_parallel_size,
            pipeline_parallel_size=plan.pipeline_parallel_size,
            bounds=build.bounds,
            quant_algo=plan.quant_algo,
            kv_cache_quant_algo=plan.kv_cache_quant_algo,
            dtype=plan.dtype,
        )
        for problem in engine_problems(folder, expected):
            said.append(problem.message)
            hints.append(problem.hint)
        for name, asked in build.bounds.items():
            built = folder.bounds.get(name)
            if built is not None and built > asked:
                said.append(f"it was built for `{name}` {built}, asked was {asked}")
    if said:
        raise StageFailed(
            f"the engine is not what was asked for: {'; '.join(said)}",
            code="trtllm.engine-differs",
            hints=tuple(dict.fromkeys(filter(None, hints))),
        )


def _check_portable(engine: Path, work: Path) -> None:
    """`config.json` quotes options; a path of this machine there is a fault of ours."""
    for path in engine.rglob("*.json"):
        if str(work).encode() in path.read_bytes():
            raise StageFailed(
                f"`{path.name}` holds a path of this machine",
                code="compile.engine-not-portable",
                hints=("report it: the same build elsewhere gives other bytes",),
            )


def _deliver(
    engine: Path, out: Path, builds: Sequence[Build], record: Mapping[str, Any]
) -> None:
    """Move a checked engine to its place; records beside each part come last."""
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    for path in sorted(engine.iterdir()):
        shutil.move(str(path), out / path.name)
    for build in builds:
        (out / build.engine / RECORD).write_text(text, "utf-8")


def _cache_file(job: Job, machine: Machine) -> Path | None:
    """Timings of kernels, which belong to one GPU and one version of TensorRT."""
    folder = str(job.settings.get("timing_cache", ""))
    if not folder:
        return None
    name = f"{machine.gpus[0].name}-{machine.toolchain.tensorrt}"
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    return Path(folder) / f"{slug}.cache"


def _keep(made: Path, cache: Path) -> None:
    """Replace a cache at once: another build may read it now."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    half = cache.with_name(f".{cache.name}.{os.getpid()}")
    shutil.copyfile(made, half)
    half.replace(cache)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
