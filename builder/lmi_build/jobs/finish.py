"""Groups of stages become jobs: host, disk, memory, time, name and reasons."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from lmi_build.catalog.instances import instances
from lmi_build.digest import digest_json
from lmi_build.errors import Problem
from lmi_build.jobs.graph import PlannedJob
from lmi_build.jobs.images import other_versions
from lmi_build.jobs.machines import cheapest_host
from lmi_build.jobs.needs import AUTO
from lmi_build.jobs.volume import Demand, demand, host_bytes, stage_seconds
from lmi_build.text import join_words
from lmi_build.units import format_bytes, format_seconds
from lmi_build.values.job import PROCESSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmi_build.catalog.instances import Instance
    from lmi_build.digest import Digest, JSONValue
    from lmi_build.jobs.placed import Placed
    from lmi_build.jobs.union import Work
    from lmi_build.values.recipe import JobSpec
    from lmi_build.values.stage import Stage

_MAX_NAME_CHARS = 63
_MAX_PREFIX_CHARS = 30
_HEX_CHARS = 12
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9]+")
# What no request holds, so that it makes no other job.
_NOT_IN_REQUESTS = (
    "max_jobs",
    "name_prefix",
    "instances",
    "images",
    "store",
    "num_hosts",
    # Its content stands for it.
    "wheels",
)


def finish(
    groups: Sequence[Sequence[Placed]],
    work: Work,
    keys: Mapping[Digest, Stage],
    *,
    salt: str,
) -> tuple[tuple[PlannedJob, ...], list[Problem]]:
    """
    Make jobs of groups of stages.

    Args:
        groups: Of one machine each, in an order that respects their inputs.
        work: The plan, with what it came from.
        keys: Every stage of the plan.
        salt: What else makes another job of the same stages.

    Returns:
        The jobs, and every reason why one of them cannot be.
    """
    jobs: list[PlannedJob] = []
    problems: list[Problem] = []
    maker: dict[Digest, str] = {}
    labels = _labels(groups)
    for label, group in zip(labels, groups, strict=True):
        made = _job(group, label, work, keys, maker, salt)
        if isinstance(made, PlannedJob):
            jobs.append(made)
            maker |= dict.fromkeys(made.stages, made.name)
        else:
            problems += made
    return tuple(jobs), problems


def _labels(groups: Sequence[Sequence[Placed]]) -> list[str]:
    """What each job is called: its device, counted where there are more."""
    words = [_word(group[0]) for group in groups]
    total = {word: words.count(word) for word in words}
    seen: dict[str, int] = {}
    labels = []
    for word in words:
        seen[word] = seen.get(word, 0) + 1
        labels.append(f"{word}-{seen[word]}" if total[word] > 1 else word)
    return labels


def _word(placed: Placed) -> str:
    machine = instances().get(placed.instance)
    accelerator = machine.accelerator if machine else "none"
    return "cpu" if accelerator == "none" else accelerator


def _job(
    group: Sequence[Placed],
    label: str,
    work: Work,
    keys: Mapping[Digest, Stage],
    maker: Mapping[Digest, str],
    salt: str,
) -> PlannedJob | list[Problem]:
    """One job of stages on one machine."""
    spec, first = work.spec, group[0]
    built = tuple(p.key for p in group)
    read = dict.fromkeys(k for p in group for k in p.stage.inputs.values())
    needs = tuple(key for key in read if key not in set(built))
    asked = demand(
        [p.stage for p in group],
        [keys[key] for key in needs],
        {p.key: _seconds(p, work) for p in group},
        built,
    )
    machine = _host(first, asked)
    if isinstance(machine, Problem):
        return [first.recipe.locate(machine)]
    problem = _disk_problem(first, machine, asked)
    if problem is not None:
        return [first.recipe.locate(problem)]
    volume = _volume(first, machine, asked, spec)
    takes_key = machine.local_disk_gb is None
    job = PlannedJob(
        name="",
        label=label,
        kind=first.kind,
        instance=machine.name,
        num_hosts=min(spec.num_hosts, _width(group)),
        image=first.image,
        volume_size_gb=volume,
        volume_kms_key_id=spec.volume_kms_key_id if takes_key else None,
        max_runtime_seconds=spec.max_runtime_seconds or asked.max_runtime_seconds,
        stages=built,
        needs=needs,
        after=tuple(dict.fromkeys(maker[key] for key in needs if key in maker)),
        disk_bytes=asked.disk_bytes,
        ram_bytes=asked.ram_bytes,
        reasons=tuple(_reasons(group, machine, asked, work, volume)),
        warnings=tuple(_warnings(group, machine, asked, work)),
    )
    prefix = spec.name_prefix or work.plan.recipe
    return replace(job, name=job_name(prefix, label, _identity(job, work, salt)))


def _identity(job: PlannedJob, work: Work, salt: str) -> dict[str, JSONValue]:
    """What makes a job another one; its name is made of it."""
    return {
        "stages": list(job.stages),
        "kind": job.kind,
        "instance": job.instance,
        "num_hosts": job.num_hosts,
        "image": job.image,
        "volume_size_gb": job.volume_size_gb,
        "max_runtime_seconds": job.max_runtime_seconds,
        "region": work.region,
        "store": work.store,
        "spec": _spec_document(work.spec),
        "publish": {a: dict(p) for a, p in work.publish.items()},
        "salt": salt,
        **({"wheels": work.wheels.key} if work.wheels else {}),
    }


def _width(group: Sequence[Placed]) -> int:
    """
    Stages of a group that can run side by side; further hosts would only cost.

    Counted by the longest way to each within the group.
    """
    level: dict[Digest, int] = {}
    for p in group:
        before = [level[k] for k in p.stage.inputs.values() if k in level]
        level[p.key] = max(before, default=-1) + 1
    levels = list(level.values())
    return max(levels.count(number) for number in set(levels))


def _seconds(placed: Placed, work: Work) -> float | None:
    facts = work.facts[placed.recipe.name]
    return stage_seconds(placed.stage, placed.recipe, facts)


def _host(first: Placed, asked: Demand) -> Instance | Problem:
    """The instance of a group's hosts."""
    if first.instance != AUTO:
        return instances()[first.instance]
    machine = cheapest_host(asked.ram_bytes, first.kind)
    return machine or Problem(
        code="job.host-too-small",
        message=f"stage `{asked.ram_stage}` needs {format_bytes(asked.ram_bytes)} of"
        " memory, more than any host without a device has",
        path="model.source",
        hint=f"build where there are {format_bytes(host_bytes(asked.ram_bytes))}",
    )


def _disk_problem(first: Placed, machine: Instance, asked: Demand) -> Problem | None:
    """Why a job's disk is too small for its plan."""
    spec, needed = first.recipe.job, asked.volume_gb
    if machine.local_disk_gb is not None and needed > machine.local_disk_gb:
        return Problem(
            code="job.disk-too-small",
            message=f"the plan needs {needed} GB of disk, and `{machine.name}` has"
            f" {machine.local_disk_gb} GB of its own and takes no volume",
            path=first.instance_path,
            hint="choose a larger size of the same family for this stage:"
            " `job: {instances: {compile: ...}}`",
        )
    given = spec.volume_size_gb if spec else None
    if given is not None and given < needed:
        return Problem(
            code="job.volume-too-small",
            message=f"a volume of {given} GB is too small: the plan needs {needed} GB"
            f" ({format_bytes(asked.disk_bytes)} of results and scratch, a fifth more,"
            " and 10 GB for everything else)",
            path="job.volume_size_gb",
            hint=f"write `volume_size_gb: {needed}`, or `auto`",
        )
    return None


def _volume(
    first: Placed, machine: Instance, asked: Demand, spec: JobSpec
) -> int | None:
    """
    GB to ask for; None for a training job on a host whose own disk is used.

    A Processing request must name a size even then, not above that disk's.
    """
    if machine.local_disk_gb is None:
        return spec.volume_size_gb or asked.volume_gb
    return asked.volume_gb if first.kind == PROCESSING else None


def _spec_document(spec: JobSpec) -> dict[str, JSONValue]:
    """What every request holds of the job section."""
    return {k: v for k, v in asdict(spec).items() if k not in _NOT_IN_REQUESTS}


def job_name(prefix: str, label: str, document: JSONValue) -> str:
    """
    A job's name: the same for the same work, within the API's pattern.

    Args:
        prefix: The recipe's name, or what it says instead.
        label: What the job is called in its graph.
        document: Everything that makes it another job.
    """
    plain = _NOT_IN_NAMES.sub("-", prefix).strip("-")[:_MAX_PREFIX_CHARS].strip("-")
    digits = digest_json(document).removeprefix("sha256:")[:_HEX_CHARS]
    return f"{plain or 'job'}-{label}-{digits}"[-_MAX_NAME_CHARS:].lstrip("-")


def _reasons(
    group: Sequence[Placed],
    machine: Instance,
    asked: Demand,
    work: Work,
    volume: int | None,
) -> list[str]:
    """Why the job is as it is, one sentence each."""
    first = group[0]
    kinds = join_words(list(dict.fromkeys(p.stage.kind for p in group)), last="and")
    word = "needs" if len({p.stage.kind for p in group}) == 1 else "need"
    if first.instance == AUTO:
        why = (
            f"{kinds}: {first.reason}; {machine.name} is the cheapest host with"
            f" {format_bytes(host_bytes(asked.ram_bytes))} of memory"
        )
    else:
        why = f"{kinds} {word} {machine.name}: {first.reason}"
    held = f"{format_bytes(asked.disk_bytes)} of results and scratch"
    disk = (
        f"{volume} GB of disk for {held}"
        if volume is not None
        else f"its own disk of {machine.local_disk_gb} GB for {held}"
    )
    found = [why, disk]
    if work.spec.num_hosts > 1:
        found.append(f"{_width(group)} of its stages can run side by side")
    if work.spec.volume_kms_key_id and machine.local_disk_gb is not None:
        found.append(
            f"{machine.name} encrypts its own disk and takes no key for a volume"
        )
    if work.spec.spot and first.kind == PROCESSING:
        found.append(
            "paid in full: SageMaker runs training jobs alone on spare capacity"
        )
    if work.spec.max_runtime_seconds is None:
        found.append(_time_reason(asked))
    return found


def _warnings(
    group: Sequence[Placed], machine: Instance, asked: Demand, work: Work
) -> list[str]:
    """What is known to go wrong, or likely to, one sentence each."""
    stages = [p.stage for p in group]
    found = [*_thread_warnings(stages, machine)]
    brought = other_versions(stages, group[0].image, work.wheels)
    for name, (theirs, ours) in brought.items():
        found.append(
            f"the image has {name} {theirs}, the plan was made with {ours}: the job"
            " will name all such differences in its first minute, and `lmi-build lock"
            " RECIPE --tools-from JOB` then plans for the image"
        )
    given = work.spec.max_runtime_seconds
    if given is not None and asked.seconds is not None and given < asked.seconds:
        found.append(
            f"stopped after {format_seconds(given)}: by rule of thumb its stages may"
            f" take {format_seconds(asked.seconds)}"
        )
    last = {
        a.stages.get("verify") or a.stages.get("package") for a in work.plan.artifacts
    }
    if work.spec.network_isolation and work.publish and last & {p.key for p in group}:
        found.append(
            "it has no network and publishes nothing; `lmi-build build` publishes what"
            " is in the store"
        )
    return found


def _thread_warnings(stages: Sequence[Stage], machine: Instance) -> Iterator[str]:
    """Threads that a key fixes and the host has not, or leaves idle."""
    fixed = {stage.params["threads"] for stage in stages if "threads" in stage.params}
    for threads in sorted(fixed - {machine.num_vcpus}, key=str):
        yield (
            f"its key fixes {threads} threads, as where it was planned, and"
            f" {machine.name} has {machine.num_vcpus} vCPUs; to plan for them set"
            f" LMI_BUILD_THREADS={machine.num_vcpus} (another key: a build here with"
            f" {threads} threads is then not found again)"
        )


def _time_reason(asked: Demand) -> str:
    limit = format_seconds(asked.max_runtime_seconds)
    if asked.seconds is None:
        return f"stopped after {limit}: nobody knows how long its stages take"
    longest = format_seconds(asked.seconds)
    return f"stopped after {limit}: by rule of thumb its stages take {longest} at most"
