"""The folder that a Neuron driver runs in, and how it is started."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.backends.containers import (
    WORK,
    Container,
    Mount,
    docker_run,
    environment,
)
from lmi_build.backends.neuronx import drivers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.backends.neuronx.compile_plan import CompilePlan
    from lmi_build.digest import JSONValue
    from lmi_build.spi import Job

RUNNERS = ("local", "container")
DRIVER, CALL, RESULT, CACHE, SOURCE = "driver", "call.json", "result", "cache", "source"
_HOME = "home"
_START = """\
import sys

from neuron_drivers.common import main

sys.exit(main(sys.argv[1:]))
"""
# Of the host's own variables for Neuron, the one that says which cores are ours.
_KEPT = ("NEURON_RT_VISIBLE_CORES",)
_NEURON = ("NEURON", "XLA_", "PJRT_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """
    Where a driver runs.

    Args:
        work: The folder it runs in, on this machine.
        root: The same folder as the driver sees it.
        runner: `local` or `container`.
        image: The container's image; empty for `local`.
        model: The model's folder on this machine.
        variables: Variables that a build sets, beside this machine's own.
        devices: Device files that a container is given.
    """

    work: Path
    root: str
    runner: str
    image: str
    model: Path
    variables: Mapping[str, str]
    devices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"the image `{self.image}`" if self.image else "this environment"

    @property
    def surroundings(self) -> dict[str, str]:
        """All variables of the process that is started on this machine."""
        if self.runner == "container":
            return dict(os.environ)
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_NEURON) or name in _KEPT
        }
        scripts = str(Path(sys.executable).parent)
        path = os.pathsep.join(filter(None, [scripts, own.get("PATH")]))
        return {**own, **self.variables, "PATH": path}

    def command(self, words: Sequence[str]) -> list[str]:
        """A driver's words as this machine runs them."""
        driver = f"{self.root}/{DRIVER}"
        if self.runner == "local":
            return [sys.executable, driver, *words]
        return docker_run(self.container, ["python3", driver, *words])

    def probe(self, names: Sequence[str]) -> list[str]:
        """Words that make the toolchain say what it is; they need no device."""
        if self.runner == "local":
            return self.command(["probe", *names])
        bare = replace(self.container, devices=(), name="")
        return docker_run(bare, ["python3", f"{self.root}/{DRIVER}", "probe", *names])

    @property
    def container(self) -> Container:
        """The container, named so that it can be ended."""
        return Container(
            image=self.image,
            mounts=mounts(str(self.work), str(self.model)),
            user=f"{os.getuid()}:{os.getgid()}",
            devices=self.devices,
            environment=self.variables,
            name=f"lmi-build-{os.getpid()}",
        )


def make_place(job: Job, plan: CompilePlan, work: Path) -> Place:
    """
    The folder of a build, with the driver and everything it reads.

    Args:
        job: Its input `source` and its settings `runner` and `image`.
        plan: The compilation.
        work: An empty folder.
    """
    runner = str(job.settings.get("runner", "local"))
    if runner not in RUNNERS:
        raise ValueError(f"`{runner}` is no runner")
    for name in (RESULT, CACHE, _HOME, SOURCE):
        (work / name).mkdir()
    ship(work / DRIVER)
    root = WORK if runner == "container" else str(work)
    return Place(
        work=work,
        root=root,
        runner=runner,
        image=str(job.settings["image"]) if runner == "container" else "",
        model=job.inputs["source"].resolve(),
        variables=call_environment(plan, root),
    )


def ship(folder: Path) -> None:
    """
    Put the drivers where a toolchain's Python finds them and nothing else.

    They are a package of their own below the folder: a script's own folder comes first
    where modules are looked for, and would hide the toolchain's `optimum`.
    """
    package = folder / "neuron_drivers"
    package.mkdir(parents=True)
    for path in sorted(Path(drivers.__file__).parent.glob("*.py")):
        shutil.copyfile(path, package / path.name)
    (folder / "__main__.py").write_text(_START, "utf-8")


def write_call(place: Place, plan: CompilePlan, *, device: bool) -> None:
    """
    Write what the driver is asked for.

    Args:
        place: Where it runs.
        plan: The compilation.
        device: Whether it may use Neuron cores.
    """
    model = f"{WORK}/{SOURCE}" if place.runner == "container" else str(place.model)
    document = request(plan, model=model, device=device)
    (place.work / CALL).write_text(json.dumps(document), "utf-8")


def request(plan: CompilePlan, *, model: str, device: bool) -> dict[str, JSONValue]:
    """What a driver reads; `drivers` says what each name means."""
    return {
        "call": dict(plan.call),
        "model": model,
        "device": device,
        "versions": dict(plan.versions),
        "block": None if plan.block is None else dict(plan.block),
        "workdir": plan.workdir,
    }


def call_environment(plan: CompilePlan, root: str) -> dict[str, str]:
    """
    Variables of a build, the same on every machine but for where its folder lies.

    The images have flags of their own in `NEURON_CC_FLAGS`; it is always set here, so
    that a build in a container and one beside its toolchain are told the same.
    """
    return {
        **environment(f"{root}/{_HOME}"),
        "NEURON_COMPILE_CACHE_URL": f"{root}/{CACHE}",
        "NEURON_CC_FLAGS": "",
        **plan.call["environment"],
    }


def mounts(work: str, model: str) -> tuple[Mount, ...]:
    """What a container sees: the build's folder, and the model read-only in it."""
    return (
        Mount(source=work, target=WORK, writable=True),
        Mount(source=model, target=f"{WORK}/{SOURCE}"),
    )
