"""
What a machine must have before a Neuron model is compiled on it.

Probes run small programs through a function that the caller gives, and parse what they
print; they hold no state. `preflight` puts them together and raises the first fault.

Sources: `neuron-ls --json-output` as Ray's accelerators/neuron.py reads it; the
instance type as optimum-neuron 0.4 utils/system.py reads it; drivers: build scripts of
djl-serving's branches 0.26.0-dlc to 0.34.0-dlc (install_inferentia2.sh).
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.host import free_host_bytes
from lmi_build.backends.neuronx.toolchain import Toolchain, check_toolchain
from lmi_build.catalog.instances import instances, use_problem
from lmi_build.errors import DoesNotFit, ToolMissing, Unsupported
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from lmi_build.spi import Answer

    Ask: TypeAlias = Callable[[Sequence[str]], Answer]

_PRODUCT = "/sys/devices/virtual/dmi/id/product_name"
_DRIVER = "/sys/module/neuron/version"
# Generation of the NeuronCores of an instance family: graphs run on one of them only.
GENERATIONS = {
    "inf1": 1,
    "inf2": 2,
    "trn1": 2,
    "trn1n": 2,
    "trn2": 3,
    "trn2n": 3,
    "trn2u": 3,
}
# NeuronCores of one device, where `neuron-ls` is not there to say.
_CORES = {
    "inf1": 4,
    "inf2": 2,
    "trn1": 2,
    "trn1n": 2,
    "trn2": 8,
    "trn2n": 8,
    "trn2u": 8,
}
# Driver that the images of a Neuron SDK bring, by the compiler's major version.
DRIVERS = {
    "2.12": "2.15.9.0",
    "2.13": "2.16.7.0",
    "2.14": "2.17.17.0",
    "2.15": "2.18.12.0",
    "2.16": "2.19.64.0",
}


_NO_DEVICE_NEEDED = (
    "take a release whose transformers-neuronx is 0.13: it compiles on any x86_64"
    " machine"
)
_REHEARSE = "add `--rehearse` to see the whole call without compiling it"
# Of those that a loader computes with, the outermost comes first.
_TNX = "transformers-neuronx"
_LIBRARIES = (
    _TNX,
    "optimum-neuron",
    "neuronx-distributed-inference",
    "torch-neuronx",
    "neuronx-cc",
)
_FEWER_AT_ONCE = (
    "compile fewer graphs at once: `compile.options: {compilation_worker_count: 1}`"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """
    One Neuron device.

    Args:
        path: Such as `/dev/neuron0`.
        num_cores: Its NeuronCores; 0 where nothing says.
        busy: A process uses it.
    """

    path: str
    num_cores: int
    busy: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """
    What a build takes.

    Args:
        versions: Version of each distribution.
        target: Machine that will serve the model, such as `ml.inf2.24xlarge`.
        num_cores: NeuronCores that loading the model takes.
        device_needed: It cannot be compiled where there is no device.
        host_bytes: Memory of the host.
        disk_bytes: Free space where the result is written.
    """

    versions: Mapping[str, str]
    target: str
    num_cores: int
    device_needed: bool
    host_bytes: int
    disk_bytes: int

    @property
    def library(self) -> str:
        """What compiles: the one that stands on all others."""
        found = (name for name in _LIBRARIES if name in self.versions)
        return next(found, _LIBRARIES[-1])

    @property
    def family(self) -> str:
        """Instance family of the target, such as `inf2`."""
        return self.target.removeprefix("ml.").partition(".")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """
    The Neuron devices of a machine.

    Args:
        instance: Its instance type, such as `inf2.8xlarge`; empty where unknown.
        devices: By number; empty for a machine without any.
        driver: Version of the driver; empty where unknown.
    """

    instance: str
    devices: tuple[Device, ...]
    driver: str

    @property
    def family(self) -> str:
        """Instance family, such as `inf2`; empty where unknown or no Neuron's."""
        family = self.instance.partition(".")[0]
        return family if family in GENERATIONS else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """
    What was found, all of it enough.

    Args:
        hardware: Its devices; without any the build must do without.
        toolchain: The packages that answered.
    """

    hardware: Hardware
    toolchain: Toolchain


def preflight(
    needs: Needs, *, ask: Ask, probe: Sequence[str], out: Path, where: str
) -> Machine:
    """
    Find everything that a build needs, or say the first thing that is missing.

    Args:
        needs: What it takes.
        ask: Runs a program on this machine.
        probe: Words that make the toolchain say what it is.
        out: Folder on the disk that the result is written to.
        where: What messages call the toolchain.

    Raises:
        ToolMissing: `neuronx.no-device`, or a fault of the toolchain.
        Unsupported: `neuronx.wrong-device`.
        DoesNotFit: `neuronx.busy-cores`, `neuronx.host-memory` or `neuronx.disk`.
    """
    hardware = read_hardware(ask)
    check_hardware(hardware, needs)
    check_host(needs, free_host_bytes(), shutil.disk_usage(out).free)
    toolchain = check_toolchain(ask(probe), needs.versions, where=where)
    return Machine(hardware=hardware, toolchain=toolchain)


def read_hardware(ask: Ask) -> Hardware:
    """
    The Neuron devices of this machine.

    Device files decide: a container gets them one by one and may lack `neuron-ls`.
    """
    names = [name for name in _lines(ask(("ls", "/dev"))) if _number(name) is not None]
    instance = next(iter(_lines(ask(("cat", _PRODUCT)))), "")
    if not names:
        return Hardware(instance=instance, devices=(), driver="")
    rows = _rows(ask(("neuron-ls", "--json-output")))
    usual = _CORES.get(instance.partition(".")[0], 0)
    devices = []
    for name in sorted(names, key=lambda name: _number(name) or 0):
        row = rows.get(_number(name), {})
        cores = row.get("nc_count")
        devices.append(
            Device(
                path=f"/dev/{name}",
                num_cores=cores if isinstance(cores, int) else usual,
                busy=bool(row.get("neuron_processes")),
            )
        )
    driver = next(iter(_lines(ask(("cat", _DRIVER)))), "")
    return Hardware(instance=instance, devices=tuple(devices), driver=driver)


def _job_hint(needs: Needs) -> tuple[str, ...]:
    """Where SageMaker would compile for a machine that it takes for no such job."""
    if needs.target not in instances():
        return ()
    problem = use_problem(needs.target, "training", path="compile.target")
    if problem is None:
        return ()
    return (f"in SageMaker: {problem.message}; {problem.hint}",)


def check_hardware(hardware: Hardware, needs: Needs) -> None:
    """
    Refuse a machine whose devices will not do; one without may.

    Raises:
        ToolMissing: `neuronx.no-device`.
        Unsupported: `neuronx.wrong-device`.
        DoesNotFit: `neuronx.busy-cores`.
    """
    if not hardware.devices:
        if needs.device_needed:
            raise ToolMissing(
                "there is no Neuron device here (`/dev/neuron0`), and the release's"
                f" {needs.library} compiles only where there is one",
                code="neuronx.no-device",
                hints=(
                    f"build on `{needs.target}` or another inf2 or trn1 instance",
                    _NO_DEVICE_NEEDED if needs.library == _TNX else _REHEARSE,
                    *_job_hint(needs),
                ),
            )
        return
    if not needs.device_needed:
        return
    if not same_generation(hardware, needs):
        raise Unsupported(
            f"`{needs.target}` has NeuronCores of version"
            f" {GENERATIONS[needs.family]}, this {hardware.instance} has version"
            f" {GENERATIONS[hardware.family]}; a graph runs only on the version it was"
            " compiled for",
            code="neuronx.wrong-device",
            hints=(f"build on `{needs.target}`",),
        )
    free = sum(device.num_cores for device in hardware.devices if not device.busy)
    known = all(device.num_cores for device in hardware.devices)
    if known and free < needs.num_cores:
        busy = [device.path for device in hardware.devices if device.busy]
        used = f" ({', '.join(busy)} in use)" if busy else ""
        raise DoesNotFit(
            f"the model is split over {needs.num_cores} NeuronCores and is loaded once"
            f" while it is compiled; {free} are free here{used}",
            code="neuronx.busy-cores",
            hints=(
                f"build on `{needs.target}`",
                "end what else uses the devices (`neuron-ls` lists it)",
            ),
        )


def uses_device(hardware: Hardware, needs: Needs) -> bool:
    """Whether a build would use the devices that are here: all of it must fit them."""
    if needs.device_needed:
        return True
    free = sum(device.num_cores for device in hardware.devices if not device.busy)
    return same_generation(hardware, needs) and 0 < needs.num_cores <= free


def same_generation(hardware: Hardware, needs: Needs) -> bool:
    """Whether the cores here run what the target's run, as far as both are known."""
    wanted = GENERATIONS.get(needs.family)
    found = GENERATIONS.get(hardware.family)
    return found is None or wanted is None or found == wanted


def check_host(needs: Needs, free_ram_bytes: int, free_disk_bytes: int) -> None:
    """
    Refuse a host that is too small.

    Raises:
        DoesNotFit: `neuronx.host-memory` or `neuronx.disk`.
    """
    if free_ram_bytes < needs.host_bytes:
        raise DoesNotFit(
            f"the build takes about {format_bytes(needs.host_bytes)} of host memory,"
            f" {format_bytes(free_ram_bytes)} is available; it would be killed without"
            " a word",
            code="neuronx.host-memory",
            hints=("use a machine with more memory", _FEWER_AT_ONCE),
        )
    if free_disk_bytes < needs.disk_bytes:
        raise DoesNotFit(
            f"the build takes about {format_bytes(needs.disk_bytes)} of disk,"
            f" {format_bytes(free_disk_bytes)} is free",
            code="neuronx.disk",
            hints=("free some space or choose another disk: `--cache-dir DIR`",),
        )


def older_driver(hardware: Hardware, compiler: str) -> str:
    """
    The driver that the compiler's SDK has, where the one here is older.

    Args:
        hardware: What was found.
        compiler: Version of the compiler.

    Returns:
        Its version; empty where the driver is new enough or nothing is known.
    """
    known = DRIVERS.get(".".join(compiler.split(".")[:2]), "")
    if not known or not re.fullmatch(r"\d+(\.\d+)*", hardware.driver):
        return ""
    return known if _parts(hardware.driver) < _parts(known) else ""


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _lines(answer: Answer) -> list[str]:
    if answer.status != 0:
        return []
    return [line.strip() for line in answer.output.splitlines() if line.strip()]


def _number(name: str) -> int | None:
    match = re.fullmatch(r"neuron(\d+)", name)
    return int(match[1]) if match else None


def _rows(answer: Answer) -> dict[int | None, Mapping[str, object]]:
    """Rows of `neuron-ls` by the number of their device; none where it is not there."""
    start = answer.output.find("[")
    if answer.status != 0 or start < 0:
        return {}
    try:
        found = json.loads(answer.output[start:])
    except ValueError:
        return {}
    rows = [row for row in found if isinstance(row, dict)]
    return {row.get("neuron_device"): row for row in rows}
