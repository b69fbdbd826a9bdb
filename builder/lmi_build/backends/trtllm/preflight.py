"""
What a machine must have before an engine is built on it.

It is asked before anything is spent. Probes run small programs through a function that
the caller gives, and parse what they print; they hold no state. `preflight` puts them
together and raises the first fault.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.host import free_host_bytes
from lmi_build.backends.trtllm.toolchain import PROBE, Toolchain, check_toolchain
from lmi_build.errors import DoesNotFit, ToolMissing, Unsupported
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from lmi_build.spi import Answer

_MIB = 1024**2
_QUERY = "index,name,compute_cap,memory.total,memory.free,driver_version"
_FIELDS = 6
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
    return Machine(
        gpus=gpus, toolchain=check_toolchain(answer, needs.trtllm, where=where)
    )


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
