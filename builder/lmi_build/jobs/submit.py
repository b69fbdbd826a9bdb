"""
Creating jobs, each once: who comes second attaches to what the first one made.

A job's name says what it builds, so that describing it by name tells everything: in
progress or done, it is taken; failed or stopped, another attempt gets a number behind
the name; not there, it is created. When one of several cannot be created, those that
this call created are stopped again: their state is kept, so that little is lost, and
nothing costs money that nobody watches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build.errors import LmiBuildError, RemoteFailed, UsageInvalid
from lmi_build.jobs import service as aws
from lmi_build.jobs.console import console_url
from lmi_build.jobs.isolation import moved_request, put_manifest
from lmi_build.jobs.submission import (
    SUBMISSION_FILE,
    attempt_name,
    submission_to_json,
)
from lmi_build.values.job import JOB_FILE

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmi_build.jobs.service import JobState, Service
    from lmi_build.jobs.shared import SharedStore
    from lmi_build.jobs.submission import Submission, SubmittedJob

# What became of a job.
CREATED = "created"
ATTACHED = "attached"
CACHED = "cached"
WAITING = "waiting"
_MAX_ATTEMPTS = 99
_TAKEN = "job.exists"


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """
    A job and what became of it.

    Args:
        job: As planned.
        how: `created`, `attached`, `cached` (its results are in the store already) or
            `waiting` (for other jobs).
        name: Of the attempt; its first one where there is none yet.
        url: Its page in the console, where there is one.
        note: Why, in words; may be empty.
    """

    job: SubmittedJob
    how: str
    name: str
    url: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """
    Where jobs are submitted and watched.

    Args:
        submission: The jobs.
        service: SageMaker.
        shared: Their store.
        say: Called with a line for people.
    """

    submission: Submission
    service: Service
    shared: SharedStore
    say: Callable[[str], None] = field(default=lambda _line: None)


def submit(ground: Ground) -> tuple[Placed, ...]:
    """
    Create what is ready, attach to what is there.

    Returns:
        Every job of the graph, in its order.

    Raises:
        RemoteFailed: A job could not be created; those that this call created have
            been stopped, or the message says how to stop them.
    """
    placed: list[Placed] = []
    num_running = 0
    try:
        for job in ground.submission.jobs:
            room = num_running < ground.submission.max_jobs
            found = place(ground, job, room=room)
            placed.append(found)
            num_running += found.how in {CREATED, ATTACHED}
    except (LmiBuildError, KeyboardInterrupt) as error:
        created = [row for row in placed if row.how == CREATED]
        if created and isinstance(error, LmiBuildError):
            raise _undone(ground, created, error) from error
        undo(ground, created)
        raise
    return tuple(placed)


def place(ground: Ground, job: SubmittedJob, *, room: bool = True) -> Placed:
    """
    Attach to a job, or create it when it is ready.

    Args:
        ground: Where.
        job: Of the graph.
        room: Whether one more job may run now.
    """
    name, state = latest(ground.service, job)
    region = ground.service.region
    url = console_url(job.kind, name, region)
    note = ""
    if state is not None:
        if state.status == aws.IN_PROGRESS:
            return Placed(job=job, how=ATTACHED, name=name, url=url, note="it runs")
        whole = not ground.shared.missing(job.keys)
        if state.status == aws.COMPLETED and whole:
            return Placed(job=job, how=CACHED, name=name, url=url, note="it is done")
        gone = "completed, but its results are gone from the store"
        was = gone if state.status == aws.COMPLETED else f"is {state.status.lower()}"
        note = f"attempt {name} {was}"
        name = _next_name(job, name)
    elif not job.publishes and not ground.shared.missing(job.keys):
        return Placed(job=job, how=CACHED, name=name, note="its results are there")
    missing = ground.shared.missing(job.inputs)
    if missing or not room:
        why = f"{len(missing)} results are not there yet" if missing else "others run"
        return Placed(job=job, how=WAITING, name=name, note=why)
    return create(ground, job, name, note)


def create(ground: Ground, job: SubmittedJob, name: str, note: str = "") -> Placed:
    """Create an attempt; one that somebody created in the meantime is taken."""
    _refuse_unsent(ground, job)
    request = moved_request(job, name, ground.submission.store)
    request = aws.named(job.kind, request, name)
    if job.isolated and job.inputs:
        put_manifest(ground.shared, job, name)
    how = CREATED
    try:
        aws.create(ground.service, job.kind, request)
    except RemoteFailed as error:
        if error.code != _TAKEN:
            raise
        # An answer that was lost, or another submit of the same recipe.
        how, note = ATTACHED, "somebody created it at the same time"
    try:
        _keep_submission(ground, name)
    except LmiBuildError:
        if how == CREATED:
            undo(ground, [Placed(job=job, how=how, name=name)])
        raise
    url = console_url(job.kind, name, ground.service.region)
    return Placed(job=job, how=how, name=name, url=url, note=note)


def _refuse_unsent(ground: Ground, job: SubmittedJob) -> None:
    """Create no job whose channel nobody sent; SageMaker would start hosts for it."""
    uri = aws.channel_of(job.kind, job.request).rstrip("/")
    key = uri.removeprefix(f"{ground.submission.store}/")
    if ground.shared.place.read(f"{key}/{JOB_FILE}") is None:
        raise UsageInvalid(
            f"{job.name} was never submitted as it is now: nothing lies at {uri}/",
            code="job.not-submitted",
            hints=(
                "run `lmi-build job submit RECIPE`",
                (
                    "where the recipe or lmi-build changed since, wait for the job by"
                    " its name: `lmi-build job list`"
                ),
            ),
        )


def latest(service: Service, job: SubmittedJob) -> tuple[str, JobState | None]:
    """
    The last attempt of a job: its name and its state.

    Returns:
        The first attempt's name and None where there was none.
    """
    name, state = job.name, None
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        wanted = attempt_name(job.name, attempt)
        found = aws.describe(service, job.kind, wanted)
        if found is None:
            break
        name, state = wanted, found
        if found.status == aws.IN_PROGRESS:
            break
    return name, state


def _next_name(job: SubmittedJob, name: str) -> str:
    for attempt in range(1, _MAX_ATTEMPTS):
        if attempt_name(job.name, attempt) == name:
            return attempt_name(job.name, attempt + 1)
    raise RemoteFailed(
        f"{job.name} was tried {_MAX_ATTEMPTS} times",
        code="job.too-many-attempts",
        hints=("give its jobs another name: `--set job.name_prefix=NAME`",),
    )


def _keep_submission(ground: Ground, name: str) -> None:
    """Let who knows only a job's name find the others of its plan."""
    key = f"jobs/{name}/{SUBMISSION_FILE}"
    data = submission_to_json(ground.submission)
    if ground.shared.place.create(key, data):
        return
    there = ground.shared.place.read(key)
    if there is not None and there.data != data:
        # Of two that submit different unions of plans, either names this job.
        ground.shared.place.swap(key, data, tag=there.tag)


def undo(ground: Ground, created: list[Placed]) -> list[Placed]:
    """Stop jobs; returns those that could not be stopped."""
    left = []
    for row in created:
        try:
            aws.stop(ground.service, row.job.kind, row.name)
        except LmiBuildError:
            left.append(row)
    return left


def _undone(
    ground: Ground, created: list[Placed], error: LmiBuildError
) -> RemoteFailed:
    left = undo(ground, created)
    stopped = [row.name for row in created if row not in left]
    told = error.message
    if stopped:
        told += f"; stopped what this call had created: {', '.join(stopped)}"
    hints = list(error.hints)
    if left:
        names = " ".join(row.name for row in left)
        told += f"; still running: {names}"
        hints.insert(0, f"stop them: `lmi-build job cancel {names}`")
    return RemoteFailed(told, code=error.code, hints=tuple(hints))
