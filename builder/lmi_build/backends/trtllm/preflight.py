"""
What a machine must have before an engine is built on it.

It is asked before anything is spent. Probes run small programs through a function that
the caller gives, and parse what they print; they hold no state. `preflight` puts them
together and raises the first fault.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.errors import DoesNotFit, ToolMissing, Unsupported
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from lmi_build.spi import Answer

_MIB = 1024**2
_QUERY = "index,name,compute_cap,memory.total,memory.free,driver_version"
_FIELDS = 6
# PyPI's `tensorrt-llm` is a source package of 1.6 kB whose build fetches the wheel from
# NVIDIA's own index; what is left of it where that failed has metadata and no module.
_STUB = re.compile(r"wheel_stub|pypi\.nvidia\.com|InstallFailedError")
# What is asked of the toolchain's Python: it must import, and say its versions.
PROBE = """\
import importlib.metadata as m, importlib.util, json, shutil
found = {"trtllm_build": shutil.which("trtllm-build") or ""}
try:
    import tensorrt_llm
    found["trtllm"] = getattr(tensorrt_llm, "__version__", "")
    build = importlib.util.find_spec("tensorrt_llm.commands.build")
    found["symbols"] = hasattr(tensorrt_llm, "Mapping") and build is not None
    import tensorrt
    found["tensorrt"] = tensorrt.__version__
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
try:
    found["distribution"] = m.version("tensorrt-llm")
except m.PackageNotFoundError:
    found["distribution"] = ""
print("LMI-BUILD " + json.dumps(found))
"""
_MARK = "LMI-BUILD "
_NOT_RUN = (125, 126, 127)

# Runs a program, given as a list of words, to its end.
if TYPE_CHECKING:
    Ask: TypeAlias = Callable[[Sequence[str]], Answer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """
    One GPU as `nvidia-smi` tells it.

    Args:
        index: Its number.
        name: Such as `NVIDIA A10G`.
        compute_capability: Such as `8.6`.
        total_bytes: Its memory.
        free_bytes: What nobody uses of it.
        driver: Version of the driver.
    """

    index: int
    name: str
    compute_capability: str
    total_bytes: int
    free_bytes: int
    driver: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolchain:
    """
    The TensorRT-LLM that answered.

    Args:
        trtllm: Its version.
        tensorrt: Version of TensorRT.
        trtllm_build: Where `trtllm-build` lies.
    """

    trtllm: str
    tensorrt: str
    trtllm_build: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """
    What a build takes.

    Args:
        trtllm: Version of TensorRT-LLM.
        compute_capability: Of the machine that will serve the engine.
        target: That machine, for messages.
        num_gpus: GPUs at least.
        gpu_bytes: Free memory of each.
        host_bytes: Memory of the host.
        disk_bytes: Free space where the engine is written.
    """

    trtllm: str
    compute_capability: str
    target: str
    num_gpus: int
    gpu_bytes: int
    host_bytes: int
    disk_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """
    What was found, all of it enough.

    Args:
        gpus: Those of the right compute capability with enough free memory, the one
            with the most first.
        toolchain: The builder.
    """

    gpus: tuple[Gpu, ...]
    toolchain: Toolchain


def preflight(
    needs: Needs,
    *,
    ask: Ask,
    prefix: Sequence[str],
    out: Path,
    where: str,
    visible: str = "",
) -> Machine:
    """
    Find everything that a build needs, or say the first thing that is missing.

    Args:
        needs: What it takes.
        ask: Runs a program on this machine.
        prefix: Words before a Python program to run it in the toolchain: the
            interpreter, or `docker run ... IMAGE`.
        out: Where the engine is written.
        where: What messages call the toolchain: this environment, or the image.
        visible: `CUDA_VISIBLE_DEVICES` of the build, which `nvidia-smi` does not obey.

    Raises:
        ToolMissing: No driver, or no TensorRT-LLM of this version.
        Unsupported: The GPUs are not the target's.
        DoesNotFit: Too few GPUs, or too little memory or disk.
    """
    gpus = check_gpus(visible_gpus(read_gpus(ask), visible), needs)
    check_host(needs, free_host_bytes(), shutil.disk_usage(out).free)
    answer = ask((*prefix, "-c", PROBE))
    return Machine(gpus=gpus, toolchain=check_toolchain(answer, needs, where=where))


def read_gpus(ask: Ask) -> tuple[Gpu, ...]:
    """
    The GPUs of this machine.

    Args:
        ask: Runs a program.

    Raises:
        ToolMissing: `trtllm.no-gpu`, when there is no driver or no GPU.
    """
    command = ("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
    answer = ask(command)
    lines = [line for line in answer.output.splitlines() if line.strip()]
    gpus = tuple(filter(None, map(_gpu, lines))) if answer.status == 0 else ()
    if not gpus:
        said = lines[0].strip() if lines else f"exit status {answer.status}"
        raise ToolMissing(
            f"no NVIDIA GPU answers here; `nvidia-smi` said: {said}",
            code="trtllm.no-gpu",
            hints=(
                "run the build on a machine with the target's GPU",
                "set `compile.artifact: checkpoint` to stop before the engine",
            ),
        )
    return gpus


def check_gpus(gpus: Sequence[Gpu], needs: Needs) -> tuple[Gpu, ...]:
    """
    The GPUs an engine can be built on.

    Raises:
        Unsupported: `trtllm.wrong-gpu`: none has the target's compute capability.
        DoesNotFit: `trtllm.few-gpus`, or `trtllm.gpu-memory`.
    """
    right = [gpu for gpu in gpus if gpu.compute_capability == needs.compute_capability]
    if not right:
        found = sorted({f"{gpu.name} ({gpu.compute_capability})" for gpu in gpus})
        raise Unsupported(
            f"`{needs.target}` has GPUs of compute capability"
            f" {needs.compute_capability}, this machine has {', '.join(found)}; an"
            " engine runs only on the kind of GPU it was built on",
            code="trtllm.wrong-gpu",
            hints=(f"build on `{needs.target}` or another machine with its GPU",),
        )
    if len(right) < needs.num_gpus:
        raise DoesNotFit(
            f"the build takes {needs.num_gpus} GPUs, this machine has {len(right)} of"
            f" compute capability {needs.compute_capability}",
            code="trtllm.few-gpus",
            hints=(f"build on `{needs.target}`", "lower the number of ranks"),
        )
    right.sort(key=lambda gpu: -gpu.free_bytes)
    least = right[needs.num_gpus - 1]
    if least.free_bytes < needs.gpu_bytes:
        raise DoesNotFit(
            f"building a rank takes about {format_bytes(needs.gpu_bytes)} of GPU"
            f" memory, GPU {least.index} ({least.name}) has"
            f" {format_bytes(least.free_bytes)} free of"
            f" {format_bytes(least.total_bytes)}",
            code="trtllm.gpu-memory",
            hints=(
                "end what else runs on the GPU (`nvidia-smi` lists it)",
                "split the model over more ranks, or lower the bounds",
            ),
        )
    return tuple(gpu for gpu in right if gpu.free_bytes >= needs.gpu_bytes)


def visible_gpus(gpus: Sequence[Gpu], visible: str) -> tuple[Gpu, ...]:
    """
    Those that a program would see.

    Args:
        gpus: All of them.
        visible: `CUDA_VISIBLE_DEVICES`; empty, or not made of indices, hides none.
    """
    shown = [part.strip() for part in visible.split(",")]
    if not all(part.isdigit() for part in shown):
        return tuple(gpus)
    return tuple(gpu for gpu in gpus if str(gpu.index) in shown)


def check_host(needs: Needs, free_ram_bytes: int, free_disk_bytes: int) -> None:
    """
    Refuse a host that is too small.

    Raises:
        DoesNotFit: `trtllm.host-memory` or `trtllm.disk`.
    """
    if free_ram_bytes < needs.host_bytes:
        raise DoesNotFit(
            f"the build takes about {format_bytes(needs.host_bytes)} of host memory,"
            f" {format_bytes(free_ram_bytes)} is available",
            code="trtllm.host-memory",
            hints=("use a machine with more memory", "build fewer ranks at once"),
        )
    if free_disk_bytes < needs.disk_bytes:
        raise DoesNotFit(
            f"the build takes about {format_bytes(needs.disk_bytes)} of disk,"
            f" {format_bytes(free_disk_bytes)} is free",
            code="trtllm.disk",
            hints=("free some space or choose another disk: `--cache-dir DIR`",),
        )


def check_toolchain(answer: Answer, needs: Needs, *, where: str) -> Toolchain:
    """
    The TensorRT-LLM that answered `PROBE`.

    Args:
        answer: What the probe printed.
        needs: The version it must have.
        where: What messages call the toolchain.

    Raises:
        ToolMissing: `trtllm.absent`, `trtllm.stub`, `trtllm.broken`,
            `trtllm.wrong-version` or `trtllm.no-builder`.
    """
    found = _found(answer)
    code, fault, hint = _fault(found, answer, needs, where)
    if found is None or code:
        get = (
            f"use the image of the release, or install TensorRT-LLM {needs.trtllm}"
            " from https://pypi.nvidia.com"
        )
        raise ToolMissing(fault, code=code, hints=tuple(filter(None, (hint, get))))
    return Toolchain(
        trtllm=str(found["trtllm"]),
        tensorrt=str(found.get("tensorrt", "")),
        trtllm_build=str(found["trtllm_build"]),
    )


def _fault(
    found: Mapping[str, object] | None, answer: Answer, needs: Needs, where: str
) -> tuple[str, str, str]:
    """Code, message and hint of what is wrong with a toolchain; empty for nothing."""
    if found is None:
        said = answer.output.strip().splitlines()[-1:] or ["nothing"]
        words = f"{where} did not answer (exit status {answer.status}): {said[0]}"
        # Docker's own statuses: it found no image, or no Python in it.
        pull = answer.status in _NOT_RUN and where.startswith("the image")
        hint = "log in to its registry and run `docker pull` first" if pull else ""
        return "trtllm.absent", words, hint
    error, version = str(found.get("error", "")), str(found.get("trtllm", ""))
    distribution = str(found.get("distribution", ""))
    builder = str(found.get("trtllm_build", ""))
    whole = found.get("symbols") is True
    absent = error.startswith("ModuleNotFoundError") and "'tensorrt_llm'" in error
    empty = not error and not whole and not builder
    name = f"TensorRT-LLM {distribution or version} in {where}"
    if (absent and distribution) or empty or _STUB.search(error):
        words = f"{name} is a placeholder without a library: PyPI has only that"
        return "trtllm.stub", words, ""
    if absent:
        return "trtllm.absent", f"{where} has no TensorRT-LLM: {error}", ""
    if error or not whole:
        words = f"{name} cannot be imported: {error or 'it lacks its own names'}"
        hint = "check driver and CUDA: `nvidia-smi` shows what the driver allows"
        return "trtllm.broken", words, hint
    if version != needs.trtllm:
        words = (
            f"the release has TensorRT-LLM {needs.trtllm}, {where} has {version}; it"
            " would not load the engine"
        )
        return "trtllm.wrong-version", words, ""
    if not builder:
        words = f"{name} has no `trtllm-build` on its PATH"
        return "trtllm.no-builder", words, "add the folder of its scripts to PATH"
    return "", "", ""


def same_as_far(known: str, found: str) -> bool:
    """
    Whether two versions agree as far as both go: `10.3` and `10.3.0.26` do.

    Args:
        known: What the catalogue says; empty agrees with everything.
        found: What is installed.
    """
    parts = zip(known.split("."), found.split("."), strict=False)
    return not known or all(one == other for one, other in parts)


def free_host_bytes(meminfo: str | None = None) -> int:
    """
    Memory that a new process can have.

    Args:
        meminfo: Text of /proc/meminfo; None reads it.
    """
    from pathlib import Path

    text = meminfo if meminfo is not None else Path("/proc/meminfo").read_text("ascii")
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    if match is None:
        raise ToolMissing(
            "/proc/meminfo does not say how much memory is available",
            code="trtllm.host-memory",
            hints=("build on Linux",),
        )
    return int(match[1]) * 1024


def _gpu(line: str) -> Gpu | None:
    """One line of the table; None for what is no such line, such as a warning."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != _FIELDS or not fields[0].isdigit():
        return None
    index, name, capability, total, free, driver = fields
    if not (total.isdigit() and free.isdigit()):
        return None
    return Gpu(
        index=int(index),
        name=name,
        compute_capability=capability,
        total_bytes=int(total) * _MIB,
        free_bytes=int(free) * _MIB,
        driver=driver,
    )


def _found(answer: Answer) -> Mapping[str, object] | None:
    """What the probe says; libraries print around it."""
    for line in answer.output.splitlines():
        if line.startswith(_MARK):
            try:
                found = json.loads(line.removeprefix(_MARK))
            except ValueError:
                return None
            return found if isinstance(found, dict) else None
    return None
