"""One job, all of its hosts, and what goes wrong with them."""

from __future__ import annotations

import random
import shutil
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmi_build import events
from lmi_build.jobs.simulation import fault as faults
from lmi_build.jobs.simulation.container import Container
from lmi_build.jobs.simulation.tree import (
    Host,
    lay_out,
    read_message,
    upload_outputs,
)
from lmi_build.values.job import PROCESSING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lmi_build.jobs.simulation.fault import Fault

# API reference, StoppingCondition: SIGTERM "delays job termination for 120 seconds".
GRACE_SECONDS = 120.0
_TICK_SECONDS = 0.1
# A stage that was told to be hit is hit while it works, not before.
_STRIKE_SECONDS = 0.5
# When a host is lost at random: some time after its first stage began.
_LOSS_SECONDS = (0.0, 10.0)
COMPLETED, FAILED, STOPPED, LOST = "Completed", "Failed", "Stopped", "Lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class HostEnd:
    """
    How one container ended.

    Args:
        host: Its name.
        status: `Completed`, `Failed`, `Stopped` or `Lost`.
        exit_code: Of its process; 128 and a signal's number where one ended it.
        message: The first kilobyte of its message.
        message_valid: Whether that is UTF-8, which SageMaker insists on.
        seconds: Wall time.
        started: Stages that it began.
        built: Stages that it built.
        outputs: Objects that went up.
        log: Everything it printed.
    """

    host: str
    status: str
    exit_code: int
    message: str
    message_valid: bool
    seconds: float
    started: tuple[str, ...]
    built: tuple[str, ...]
    outputs: tuple[str, ...]
    log: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEnd:
    """
    How a job ended.

    Args:
        name: Its name.
        status: As SageMaker would say: `Completed`, `Failed` or `Stopped`.
        hosts: Each of its hosts.
    """

    name: str
    status: str
    hosts: tuple[HostEnd, ...]


@dataclass(kw_only=True)
class _Running:
    """A host while it works."""

    host: Host
    container: Container
    began: float
    emit: Callable[[str, events.Event], None]
    fault: Fault | None
    strike_at: float | None = None
    first_stage_at: float | None = None
    started: list[str] = field(default_factory=list)
    built: list[str] = field(default_factory=list)
    stopping_since: float | None = None
    lost: bool = False

    def read(self, line: str) -> None:
        """Pass an event on; what is not one is in the log."""
        if not line.startswith('{"event"'):
            return
        try:
            event = events.from_json(line)
        except ValueError:
            return
        if isinstance(event, events.StageStarted):
            now = time.monotonic()
            self.started.append(event.stage)
            self.first_stage_at = self.first_stage_at or now
            if self.fault is not None and self.fault.strikes(event.stage):
                self.strike_at = now + _STRIKE_SECONDS
        elif isinstance(event, events.StageFinished):
            self.built.append(event.stage)
        self.emit(self.host.name, event)


def simulate_job(  # noqa: PLR0913 - each is a choice of the caller
    kind: str,
    request: Mapping[str, Any],
    *,
    client: Any,
    environment: Mapping[str, str],
    scratch: Path,
    fault: Fault | None = None,
    emit: Callable[[str, events.Event], None] = lambda _host, _event: None,
    mounted: bool = True,
    seed: int | None = None,
) -> JobEnd:
    """
    Run a job on this machine as SageMaker would on its own.

    Args:
        kind: `processing` or `training`.
        request: Body of CreateProcessingJob or CreateTrainingJob.
        client: Of the S3 server that its inputs are on.
        environment: What the image sets; the request's own variables win.
        scratch: Folder for the hosts' folders and logs.
        fault: What goes wrong.
        emit: Told every event with its host.
        mounted: Whether containers may have namespaces of their own.
        seed: Of the moment at which a host is lost.
    """
    name = str(request.get("ProcessingJobName") or request.get("TrainingJobName"))
    if fault is not None and fault.kind == faults.LIMIT:
        limit = {"MaxRuntimeInSeconds": int(fault.seconds)}
        request = {**request, "StoppingCondition": limit}
    hosts = _hosts(kind, request, scratch)
    running = []
    for host in hosts:
        lay_out(host, request, client)
        running.append(
            _begin(host, request, environment, fault=fault, emit=emit, mounted=mounted)
        )
    _oversee(running, request, fault, random.Random(seed))  # noqa: S311 - a moment
    ends = tuple(_end(one, request, client) for one in running)
    return JobEnd(name=name, status=_status(ends), hosts=ends)


def _hosts(kind: str, request: Mapping[str, Any], scratch: Path) -> tuple[Host, ...]:
    if kind == PROCESSING:
        count = request["ProcessingResources"]["ClusterConfig"]["InstanceCount"]
    else:
        count = request["ResourceConfig"]["InstanceCount"]
    names = tuple(f"algo-{number}" for number in range(1, count + 1))
    for name in names:
        shutil.rmtree(scratch / name, ignore_errors=True)
    return tuple(
        Host(name=name, hosts=names, root=scratch / name / "ml", kind=kind)
        for name in names
    )


def _begin(
    host: Host,
    request: Mapping[str, Any],
    environment: Mapping[str, str],
    *,
    fault: Fault | None,
    emit: Callable[[str, events.Event], None],
    mounted: bool,
) -> _Running:
    spec = request.get("AppSpecification") or request["AlgorithmSpecification"]
    # What a container leaves in its temporary folder goes with the container.
    temporary = host.root.with_name("tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    variables = {
        **environment,
        "TMPDIR": str(temporary),
        **request.get("Environment", {}),
    }
    if host.kind != PROCESSING:
        variables["TRAINING_JOB_NAME"] = str(request["TrainingJobName"])
    full = fault is not None and fault.kind == faults.DISK_FULL
    container = Container(
        root=host.root,
        command=[*spec["ContainerEntrypoint"], *spec.get("ContainerArguments", ())],
        environment=variables,
        log=host.root.with_name("log.txt"),
        on_line=lambda _line: None,
        volume=host.places.volume,
        volume_bytes=fault.num_bytes if fault is not None and full else 0,
        mounted=mounted,
        network=not _is_isolated(request),
    )
    one = _Running(
        host=host,
        container=container,
        began=time.monotonic(),
        emit=emit,
        fault=fault,
    )
    container.on_line = one.read
    container.start()
    return one


def _is_isolated(request: Mapping[str, Any]) -> bool:
    network = request.get("NetworkConfig") or request
    return bool(network.get("EnableNetworkIsolation"))


def _oversee(
    running: list[_Running],
    request: Mapping[str, Any],
    fault: Fault | None,
    draw: random.Random,
) -> None:
    """Send the signals that are due until every container has ended."""
    limit = float(request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 1e9))
    doomed = draw.choice(running) if _kind(fault) == faults.LOST_HOST else None
    delay = draw.uniform(*_LOSS_SECONDS)
    if fault is not None and fault.seconds >= 0:
        delay = fault.seconds
    struck = threading.Event()
    try:
        while any(one.container.wait(0) is None for one in running):
            now = time.monotonic()
            for one in running:
                if one.container.wait(0) is None:
                    _signal(one, now, limit, fault, struck)
            if doomed is not None and _is_due(doomed, now, delay):
                doomed.lost = doomed.container.wait(0) is None
                doomed.container.kill()
                doomed = None
            time.sleep(_TICK_SECONDS)
    finally:
        # Whatever ends us, nothing that we started goes on.
        for one in running:
            if one.container.wait(0) is None:
                one.container.kill()


def _is_due(one: _Running, now: float, delay: float) -> bool:
    return one.first_stage_at is not None and now - one.first_stage_at >= delay


def _kind(fault: Fault | None) -> str:
    return fault.kind if fault is not None else ""


def _signal(
    one: _Running,
    now: float,
    limit: float,
    fault: Fault | None,
    struck: threading.Event,
) -> None:
    due = one.strike_at is not None and now >= one.strike_at and not struck.is_set()
    if due and _kind(fault) == faults.KILL:
        struck.set()
        one.container.kill()
        return
    stop = due and _kind(fault) == faults.STOP
    if (stop or now - one.began >= limit) and one.stopping_since is None:
        if stop:
            struck.set()
        one.stopping_since = now
        one.container.terminate()
    if one.stopping_since is not None and now - one.stopping_since >= GRACE_SECONDS:
        one.container.kill()


def _end(one: _Running, request: Mapping[str, Any], client: Any) -> HostEnd:
    code = one.container.wait() or 0
    message, valid = read_message(one.host, ok=code == 0)
    status = COMPLETED if code == 0 and valid else FAILED
    if one.lost:
        status = LOST
    elif one.stopping_since is not None:
        status = STOPPED
    return HostEnd(
        host=one.host.name,
        status=status,
        exit_code=code,
        message=message,
        message_valid=valid,
        seconds=round(time.monotonic() - one.began, 3),
        started=tuple(one.started),
        built=tuple(one.built),
        # A host that is gone has nobody to copy its outputs.
        outputs=() if one.lost else tuple(upload_outputs(one.host, request, client)),
        log=one.container.log,
    )


def _status(ends: tuple[HostEnd, ...]) -> str:
    statuses = {end.status for end in ends}
    if statuses == {COMPLETED}:
        return COMPLETED
    return STOPPED if statuses <= {COMPLETED, STOPPED} else FAILED
