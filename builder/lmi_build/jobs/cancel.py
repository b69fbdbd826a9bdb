"""Stopping jobs, and leaving their store clean."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.errors import RemoteFailed
from lmi_build.jobs import service as aws
from lmi_build.jobs.isolation import MANIFEST_FILE
from lmi_build.store.lease import LEASE_SECONDS, lease_key, look

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmi_build.digest import Digest
    from lmi_build.jobs.shared import SharedStore
    from lmi_build.jobs.submission import SubmittedJob
    from lmi_build.jobs.submit import Ground

# A container gets two minutes for its state, and SageMaker some for its own work.
_MOST_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancelled:
    """
    What became of one job.

    Args:
        name: Of the attempt.
        status: In the end.
        stopped: Whether this call stopped it; it had ended otherwise.
        built: Names of its stages that have a result; they are kept.
        with_state: Names of stages whose half-done work is kept for the next attempt.
        leases: How many claims on stages were taken away.
    """

    name: str
    status: str
    stopped: bool
    built: tuple[str, ...] = ()
    with_state: tuple[str, ...] = ()
    leases: int = 0


def cancel(
    ground: Ground,
    jobs: list[tuple[SubmittedJob, str]],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Cancelled, ...]:
    """
    Stop jobs, wait until they have stopped, and clear what they hold.

    Results and half-done work stay in the store: what is submitted again goes on there.

    Args:
        ground: Where.
        jobs: With the names of their attempts.
        sleep: Waits for some seconds.

    Raises:
        RemoteFailed: A job cannot be stopped, or does not stop.
    """
    running = set()
    for job, name in jobs:
        state = aws.describe(ground.service, job.kind, name)
        if state is not None and not state.has_ended:
            aws.stop(ground.service, job.kind, name)
            running.add(name)
            ground.say(f"stopping {name}")
    found = []
    for job, name in jobs:
        status = _wait(ground, job, name, sleep)
        found.append(_cleared(ground, job, name, status, name in running, sleep))
    return tuple(found)


def _wait(
    ground: Ground, job: SubmittedJob, name: str, sleep: Callable[[float], None]
) -> str:
    patience = ground.service.patience
    waited, pause = 0.0, patience.poll_seconds
    while True:
        state = aws.describe(ground.service, job.kind, name)
        if state is None:
            return "not created"
        if state.has_ended:
            return state.status
        if waited > _MOST_SECONDS:
            raise RemoteFailed(
                f"{name} is still {state.status} after {waited:.0f} s",
                code="job.does-not-stop",
                hints=(f"look again: `lmi-build job status {name}`",),
            )
        sleep(pause)
        waited += pause
        pause = min(pause * 1.5, patience.slowest_poll_seconds)


def _cleared(
    ground: Ground,
    job: SubmittedJob,
    name: str,
    status: str,
    stopped: bool,  # noqa: FBT001 - a field of the answer
    sleep: Callable[[float], None],
) -> Cancelled:
    shared = ground.shared
    missing = set(shared.missing(job.keys))
    shared.place.remove(f"jobs/{name}/{MANIFEST_FILE}")
    state = {
        stage.key
        for stage in job.stages
        if stage.key in missing and _has_state(shared, stage.key)
    }
    return Cancelled(
        name=name,
        status=status,
        stopped=stopped,
        built=tuple(s.name for s in job.stages if s.key not in missing),
        with_state=tuple(s.name for s in job.stages if s.key in state),
        leases=sum(release(shared, key, sleep) for key in job.keys),
    )


def _has_state(shared: SharedStore, key: Digest) -> bool:
    return bool(shared.place.listing(f"state/{key.removeprefix('sha256:')}/"))


def release(
    shared: SharedStore, key: Digest, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """
    Take away a claim that nobody renews; whether there was one.

    One that is renewed while we look belongs to another build and stays.
    """
    seen = look(shared.place, key)
    waited = 0.0
    while seen.tag and not seen.free:
        if waited > LEASE_SECONDS:
            break
        sleep(LEASE_SECONDS / 4)
        waited += LEASE_SECONDS / 4
        again = look(shared.place, key)
        if again.tag != seen.tag and not again.free:
            return False
        seen = again
    if not seen.tag or not seen.free:
        return False
    shared.place.remove(lease_key(key))
    return True
