"""Which instance a stage runs on, as which kind of job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.preflight import GENERATIONS
from lmi_build.catalog.instances import instances, use_problem
from lmi_build.catalog.prices import DEFAULT_REGION, find_price, price_tables
from lmi_build.errors import Problem
from lmi_build.jobs.needs import AUTO, GPU, NEURON, NO_DEVICE, device_words
from lmi_build.jobs.volume import fits_ram, host_bytes
from lmi_build.text import did_you_mean
from lmi_build.units import format_bytes
from lmi_build.values.job import PROCESSING, TRAINING

if TYPE_CHECKING:
    from lmi_build.catalog.instances import Instance
    from lmi_build.jobs.needs import Need
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.stage import Stage

# Fewer make a host that waits for its own calibration.
_LEAST_VCPUS = 4
# Keeps its activations on disk where they do not fit, and refuses by itself what does
# not fit even so: its estimate is what it would like to have.
_SPILLS = "lmi_build.quantizers.builtin"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """
    Where a stage runs.

    Args:
        kind: `processing` or `training`.
        instance: Instance type; `auto` for any host without a device.
        reason: Why, in words.
    """

    kind: str
    instance: str
    reason: str


def choose_machine(stage: Stage, need: Need, kind: str) -> Choice | Problem:
    """
    Where a stage runs, or why nowhere.

    Args:
        stage: Of a plan.
        need: What it asks of its machine.
        kind: `job.kind`: `auto`, `processing` or `training`.
    """
    if need.instance != AUTO:
        return _named(stage, need, kind)
    if need.accelerator == NO_DEVICE:
        chosen = PROCESSING if kind == AUTO else kind
        return Choice(kind=chosen, instance=AUTO, reason=_no_device_reason(need))
    if need.accelerator == NEURON:
        return _neuron(stage, need, kind)
    return _job_kind(
        instances()[need.target],
        kind,
        path="compile.target",
        why=f"the engine is for {device_words(instances()[need.target])}",
    )


def _no_device_reason(need: Need) -> str:
    if need.release:
        return f"`{need.release}` compiles without a device"
    return "no device is needed"


def _named(stage: Stage, need: Need, kind: str) -> Choice | Problem:
    """The instance that the recipe names."""
    machine = instances().get(need.instance)
    if machine is None:
        return _unknown(need.instance, need.instance_path)
    chosen = _job_kind(
        machine, kind, path=need.instance_path, why=f"`{need.instance_path}` says so"
    )
    if isinstance(chosen, Problem):
        return chosen
    return (
        _device_problem(need, machine) or _ram_problem(stage, need, machine) or chosen
    )


def named_problems(recipe: Recipe) -> list[Problem]:
    """
    What the job section alone tells: instances that are none, or none for its kind.

    Whether they fit the stages is known when the recipe is planned.

    Args:
        recipe: Checked; without a job section it has no such problem.
    """
    job = recipe.job
    if job is None:
        return []
    named = {f"job.instances.{kind}": name for kind, name in job.instances.items()}
    if job.instance != AUTO:
        named["job.instance"] = job.instance
    found = []
    for path, name in named.items():
        machine = instances().get(name)
        problem = (
            _unknown(name, path)
            if machine is None
            else _job_kind(machine, job.kind, path=path, why="")
        )
        if isinstance(problem, Problem):
            found.append(recipe.locate(problem))
    return found


def _unknown(name: str, path: str) -> Problem:
    near = did_you_mean(name, instances())
    return Problem(
        code="job.unknown-instance",
        message=f"the catalogue has no instance `{name}`",
        path=path,
        hint=f"did you mean `{near}`?" if near else "write one such as `ml.m5.2xlarge`",
    )


def _job_kind(machine: Instance, kind: str, *, path: str, why: str) -> Choice | Problem:
    """As which kind of job an instance runs, by what SageMaker takes it for."""
    if kind != AUTO:
        problem = use_problem(machine.name, kind, path=path)
        return problem or Choice(kind=kind, instance=machine.name, reason=why)
    if PROCESSING in machine.uses:
        return Choice(kind=PROCESSING, instance=machine.name, reason=why)
    problem = use_problem(machine.name, TRAINING, path=path)
    return problem or Choice(
        kind=TRAINING,
        instance=machine.name,
        reason=f"{why}; SageMaker takes {machine.name} for no processing job",
    )


def _device_problem(need: Need, machine: Instance) -> Problem | None:
    """Why an instance's devices cannot build what a stage builds."""
    if need.accelerator == NO_DEVICE:
        return None
    target = instances()[need.target]
    if need.accelerator == GPU:
        alike = machine.compute_capability == target.compute_capability
    else:
        alike = _generation(machine) == _generation(target)
        alike = alike and machine.num_cores >= need.num_cores
    if alike:
        return None
    return Problem(
        code="job.wrong-device",
        message=f"the engine is for {device_words(target)} of `{target.name}`, and"
        f" `{machine.name}` has {device_words(machine)}",
        path=need.instance_path,
        hint="leave out the instance of `compile`, or write"
        f" `job: {{instances: {{compile: {_nearest(need)}}}}}`",
    )


def _nearest(need: Need) -> str:
    if need.accelerator == GPU:
        return need.target
    machine = _neuron_host(need)
    return machine.name if machine else need.target


def _generation(machine: Instance) -> int:
    """Version of an instance's NeuronCores; 0 without any."""
    return GENERATIONS.get(machine.name.split(".")[1], 0)


def _neuron(stage: Stage, need: Need, kind: str) -> Choice | Problem:
    """A host with the target's generation of NeuronCores that jobs can have."""
    machine = _neuron_host(need)
    if machine is None:
        return Problem(
            code="job.no-device",
            message=f"SageMaker has no job with {need.num_cores} NeuronCores like those"
            f" of `{need.target}`",
            path="compile.target",
            hint="lower `compile.tensor_parallel_size`, or choose a release that"
            " compiles without a device",
            unsupported=True,
        )
    if kind == PROCESSING:
        return Problem(
            code="job.needs-training",
            message=f"stage `{stage.kind}` needs a Neuron device, and SageMaker runs no"
            f" processing job on one; it runs training jobs on `{machine.name}`",
            path="job.kind",
            hint="write `kind: auto` or `kind: training`, or choose a `compile.release`"
            " that compiles without a device",
        )
    problem = _ram_problem(stage, need, machine)
    return problem or Choice(
        kind=TRAINING,
        instance=machine.name,
        reason=f"`{need.release}` compiles only where there are NeuronCores like those"
        f" of {need.target}, which SageMaker gives to training jobs alone",
    )


def _neuron_host(need: Need) -> Instance | None:
    """The smallest that will do."""
    wanted = _generation(instances()[need.target])
    fitting = [
        machine
        for machine in instances().values()
        if machine.accelerator == NEURON
        and TRAINING in machine.uses
        and _generation(machine) == wanted
        and machine.num_cores >= need.num_cores
    ]
    return min(fitting, key=lambda machine: machine.num_cores, default=None)


def _ram_problem(stage: Stage, need: Need, machine: Instance) -> Problem | None:
    """Why a stage does not fit a host's memory."""
    ram = stage.estimate.ram_bytes
    if fits_ram(ram, machine.memory_bytes) or stage.entry.startswith(_SPILLS):
        return None
    larger = cheapest_host(ram, PROCESSING) if need.accelerator == NO_DEVICE else None
    where = f"; `{larger.name}` has it" if larger else ""
    return Problem(
        code="job.host-too-small",
        message=f"stage `{stage.kind}` needs {format_bytes(ram)} of memory, and"
        f" `{machine.name}` has {format_bytes(machine.memory_bytes)}",
        path=need.instance_path if need.instance != AUTO else "compile.target",
        hint=f"choose a host with {format_bytes(host_bytes(ram))} or more{where}",
    )


def cheapest_host(ram_bytes: int, kind: str) -> Instance | None:
    """
    The cheapest host without a device that fits a stage.

    Prices are those of one region: which host is cheaper than which hangs on it little.

    Args:
        ram_bytes: What the stage needs.
        kind: `processing` or `training`.
    """
    fitting = [
        machine
        for machine in instances().values()
        if machine.accelerator == NO_DEVICE
        and kind in machine.uses
        and machine.num_vcpus >= _LEAST_VCPUS
        and fits_ram(ram_bytes, machine.memory_bytes)
    ]
    return min(fitting, key=_cost, default=None)


def _cost(machine: Instance) -> tuple[float, int, str]:
    price = find_price(
        price_tables(), machine.name, region=DEFAULT_REGION, job=PROCESSING
    )
    usd = price.usd_per_hour.high if price else float("inf")
    return usd, machine.memory_bytes, machine.name
