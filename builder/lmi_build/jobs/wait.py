"""
Watching jobs to their end, and submitting those that wait for others.

Nothing of ours runs anywhere but here: what this loop knows it reads from SageMaker and
from the store, so that it can be left at any moment and taken up by the same command.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build.errors import Interrupted, LmiBuildError, RemoteFailed
from lmi_build.jobs import service as aws
from lmi_build.jobs.ending import failure_of
from lmi_build.jobs.logs import LogTail
from lmi_build.jobs.submit import CACHED, WAITING, latest, place

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmi_build.jobs.service import JobState
    from lmi_build.jobs.submission import SubmittedJob
    from lmi_build.jobs.submit import Ground
    from lmi_build.jobs.watch import Merger
    from lmi_build.values.job import JobResult

# CloudWatch has a job's last lines a little later than SageMaker its end.
_QUIET_POLLS = 2
_MOST_POLLS = 10


@dataclass(kw_only=True)
class Tracked:
    """
    One job while it is watched.

    Args:
        job: As submitted.
        name: Of the attempt that is watched; empty while there is none.
        state: As last seen.
        tail: Its output.
        done: Its results are there, or it has failed.
        failure: Why it failed.
        results: What its hosts left.
    """

    job: SubmittedJob
    name: str = ""
    state: JobState | None = None
    tail: LogTail | None = None
    done: bool = False
    failure: LmiBuildError | None = None
    results: tuple[JobResult, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether it is on SageMaker and has not ended."""
        return bool(self.name) and not self.done


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """
    How the jobs ended.

    Args:
        jobs: Each with what its hosts left.
        seconds: That were spent waiting.
    """

    jobs: tuple[Tracked, ...]
    seconds: float

    @property
    def failure(self) -> LmiBuildError | None:
        """The first failure, or None."""
        return next((row.failure for row in self.jobs if row.failure), None)


@dataclass(kw_only=True)
class Waiter:
    """
    The loop's state.

    Args:
        ground: The jobs, SageMaker and the store.
        merger: Where lines go.
        bring: Called for a job without network, to bring its results into the store.
        sleep: Waits for some seconds.
        refused: Why a follower could not be created.
        rows: The jobs while they are watched.
        silent: Names of jobs whose logs may not be read, and that was said.
    """

    ground: Ground
    merger: Merger
    bring: Callable[[SubmittedJob, JobState], None]
    sleep: Callable[[float], None] = time.sleep
    refused: LmiBuildError | None = None
    rows: list[Tracked] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)

    def run(self) -> Outcome:
        """
        Wait for every job.

        Raises:
            Interrupted: The user stopped waiting; the jobs go on.
            RemoteFailed: The service refuses, or a job could not be created.
        """
        started = time.monotonic()
        self.rows = [Tracked(job=job) for job in self.ground.submission.jobs]
        self.merger.begin(self.ground.submission)
        try:
            self._attach()
            self._loop()
        except KeyboardInterrupt:
            raise _left(self.rows) from None
        except RemoteFailed as error:
            raise _lost_sight(self.rows, error) from error
        seconds = time.monotonic() - started
        ok = not any(row.failure for row in self.rows) and self.refused is None
        self.merger.end(ok=ok, seconds=seconds)
        if self.refused is not None:
            raise self.refused
        return Outcome(jobs=tuple(self.rows), seconds=seconds)

    def _loop(self) -> None:
        patience = self.ground.service.patience
        pause = patience.poll_seconds
        while True:
            moved = [self._look(row) for row in self.rows if row.runs]
            moved += [self._start(row) for row in self.rows if not row.name]
            if not any(moved):
                self._refuse_idle()
            if not any(row.runs for row in self.rows) and not self._more():
                return
            pause = (
                patience.poll_seconds
                if any(moved)
                else min(pause * 1.5, patience.slowest_poll_seconds)
            )
            self.sleep(pause)

    def _more(self) -> bool:
        """Whether a job can still be started."""
        stopped = self.refused is not None or any(row.failure for row in self.rows)
        return not stopped and any(not row.done for row in self.rows)

    def _attach(self) -> None:
        """Find what is there already, and what is already done."""
        for row in self.rows:
            name, state = latest(self.ground.service, row.job)
            if state is None:
                continue
            if state.status in {aws.FAILED, aws.STOPPED} and self._outdated(row, state):
                continue
            self._watch(row, name)

    def _outdated(self, row: Tracked, state: JobState) -> bool:
        """Whether a job that failed did so before the jobs it needs were started."""
        before = [self._row(name).state for name in row.job.after]
        return any(
            other is None
            or (
                other.created is not None
                and state.created is not None
                and other.created > state.created
            )
            for other in before
        )

    def _row(self, name: str) -> Tracked:
        return next(row for row in self.rows if row.job.name == name)

    def _watch(self, row: Tracked, name: str) -> None:
        row.name = name
        row.state = aws.describe(self.ground.service, row.job.kind, name)
        row.tail = LogTail(self.ground.service, row.job.kind, name)

    def _start(self, row: Tracked) -> bool:
        """Start a job whose inputs are there; whether something happened."""
        if row.done or not self._more():
            return False
        limit = self.ground.submission.max_jobs
        if sum(other.runs for other in self.rows) >= limit:
            return False
        if not all(self._row(name).done for name in row.job.after):
            return False
        try:
            placed = place(self.ground, row.job)
        except LmiBuildError as error:
            # Those that run are watched to their end first.
            self.refused = error
            return False
        if placed.how == WAITING:
            return False
        self.ground.say(f"job {placed.name} {placed.how}  {placed.url}".rstrip())
        if placed.how == CACHED:
            row.done = True
        else:
            self._watch(row, placed.name)
        return True

    def _refuse_idle(self) -> None:
        """End where nothing can start: no job makes what is missing."""
        rows = [row for row in self.rows if not row.done]
        if any(row.runs for row in rows) or not self._more():
            return
        shared = self.ground.shared
        absent = {key for row in rows for key in shared.missing(row.job.inputs)}
        self.refused = RemoteFailed(
            f"{rows[0].job.name} cannot start: {len(absent)} results that no job makes"
            " are not in the store",
            code="job.inputs-missing",
            hints=("run `lmi-build job submit` with the recipe: it sends them",),
        )

    def _look(self, row: Tracked) -> bool:
        """Read what a job said; whether it said or became anything."""
        assert row.tail is not None  # noqa: S101 - it is watched
        state = aws.describe(self.ground.service, row.job.kind, row.name)
        lines = row.tail.poll()
        self.merger.take(row.name, lines)
        if row.tail.refused is not None and row.name not in self.silent:
            self.silent.add(row.name)
            self.ground.say(f"note: no logs of {row.name}: {row.tail.refused.message}")
        changed = row.state is None or state is None or row.state.status != state.status
        row.state = state or row.state
        if state is not None and state.has_ended:
            self._drain(row)
            self._end(row, state)
        return bool(lines) or changed

    def _drain(self, row: Tracked) -> None:
        """Read a job's last lines, which come after its end."""
        assert row.tail is not None  # noqa: S101 - it is watched
        quiet = 0
        for _ in range(_MOST_POLLS):
            lines = row.tail.poll()
            self.merger.take(row.name, lines)
            quiet = 0 if lines else quiet + 1
            if quiet == _QUIET_POLLS or row.tail.refused:
                break
            self.sleep(self.ground.service.patience.poll_seconds)

    def _end(self, row: Tracked, state: JobState) -> None:
        shared = self.ground.shared
        if row.job.isolated:
            # Also of a job that failed: what it finished is kept.
            self.bring(row.job, state)
        row.results = shared.results(row.name)
        row.failure = failure_of(
            state,
            row.results,
            missing=len(shared.missing(row.job.keys)),
            last_lines=tuple(self.merger.last.get(row.name, ())),
        )
        row.done = True


def _lost_sight(rows: list[Tracked], error: RemoteFailed) -> RemoteFailed:
    """What went wrong here, and that it does not concern the jobs."""
    names = " ".join(row.name for row in rows if row.runs)
    if not names:
        return error
    return RemoteFailed(
        f"{error.message}; the jobs go on: {names}",
        code=error.code,
        hints=(*error.hints, f"or stop them: `lmi-build job cancel {names}`"),
    )


def _left(rows: list[Tracked]) -> Interrupted:
    names = " ".join(row.name for row in rows if row.runs)
    waiting = [row.job.name for row in rows if not row.name and not row.done]
    what = f"the jobs go on: {names}" if names else "no job runs"
    if waiting:
        what += f"; not yet created: {' '.join(waiting)}"
    hints = ["go on watching: the same command, or `lmi-build job wait NAME`"]
    if names:
        hints.append(f"stop them: `lmi-build job cancel {names}`")
    return Interrupted(
        f"stopped waiting; {what}", code="job.left-running", hints=tuple(hints)
    )
