"""Why a model cannot be compiled on the machine that plans, said before anything is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lmi_build.backends.blockers import blocked_by, docker_blocker
from lmi_build.backends.host import free_host_bytes
from lmi_build.backends.neuronx.preflight import (
    Needs,
    check_hardware,
    check_host,
    read_hardware,
)
from lmi_build.backends.neuronx.toolchain import same_version
from lmi_build.errors import LmiBuildError
from lmi_build.values.stage import Blocker

if TYPE_CHECKING:
    from lmi_build.backends.neuronx.compile_plan import CompilePlan
    from lmi_build.spi import Host

_REHEARSE = "`--rehearse` shows what would be compiled"


def neuron_needs(
    plan: CompilePlan, target: str, *, host_bytes: int, disk_bytes: int
) -> Needs:
    """
    What a build takes, for `neuron_blocker`.

    Args:
        plan: The compilation.
        target: Instance type that will serve the model, such as `ml.inf2.24xlarge`.
        host_bytes: Estimate of the host's memory.
        disk_bytes: Estimate of its disk.
    """
    return Needs(
        versions=plan.versions,
        target=target,
        num_cores=plan.num_cores,
        device_needed=plan.device_needed,
        host_bytes=host_bytes,
        disk_bytes=disk_bytes,
    )


def neuron_blocker(plan: CompilePlan, needs: Needs, host: Host) -> Blocker | None:
    """
    The first thing that is missing here, or None.

    What costs time to find out, such as whether the toolchain can be imported and how
    much disk is free, the stage itself looks at before it spends anything.

    Args:
        plan: The compilation.
        needs: What it takes, of `neuron_needs`.
        host: This machine.
    """
    try:
        check_hardware(read_hardware(host.ask), needs)
        check_host(needs, free_host_bytes(), needs.disk_bytes)
    except LmiBuildError as error:
        return blocked_by(error, otherwise=_REHEARSE)
    if host.architecture != "x86_64":
        return Blocker(
            code="neuronx.wrong-processor",
            message=f"the Neuron compiler runs on x86_64, this machine is"
            f" {host.architecture}",
            hint=f"build on an x86_64 machine; {_REHEARSE}",
        )
    if host.runner == "container":
        return docker_blocker(host, code="neuronx.no-docker", otherwise=_REHEARSE)
    return _toolchain_blocker(plan, host)


def _toolchain_blocker(plan: CompilePlan, host: Host) -> Blocker | None:
    found = host.versions(plan.versions)
    wrong = [
        f"{name} {version} ({has or 'absent'})"
        for name, version in sorted(plan.versions.items())
        if not same_version(version, has := found.get(name) or "")
    ]
    if not wrong:
        return None
    python = sys.executable.rpartition("/")[2]
    return Blocker(
        code="neuronx.no-toolchain",
        message=f"`{plan.release}` compiles with {', '.join(wrong)} beside this"
        f" {python}",
        hint="run lmi-build inside the release's image, or set"
        f" `LMI_BUILD_RUNNER=container`; {_REHEARSE}",
    )
