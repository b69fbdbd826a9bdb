"""Many hosts' events as one build's, so that it looks like a build on one machine."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build import events

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmi_build.events import Emit, Event
    from lmi_build.execute.redact import Redactor
    from lmi_build.jobs.logs import LogLine
    from lmi_build.jobs.submission import Submission

# Of one job, for the end of a message about its failure.
_LAST_LINES = 20
LOG_CODE = "job.log"


@dataclass(kw_only=True)
class Merger:
    """
    Takes lines of many hosts and tells them as one build.

    A stage that another host built is `cached` to the hosts that come later; of those
    only the first word counts.

    Args:
        emit: Where events go.
        redactor: Hides secrets.
        finished: Stages by name to what was said of their end.
        last: The last lines of each job, that were no events.
    """

    emit: Emit
    redactor: Redactor
    finished: dict[str, Event] = field(default_factory=dict)
    last: dict[str, deque[str]] = field(default_factory=dict)

    def begin(self, submission: Submission) -> None:
        """Tell of every stage once."""
        names = tuple(stage.name for stage in submission.stages)
        self.emit(events.PlanReady(recipe=submission.recipe, stages=names))

    def take(self, job: str, lines: Iterable[LogLine]) -> None:
        """Tell what hosts of one job said."""
        for line in lines:
            event = line.event
            if event is None:
                self._other(job, line)
            else:
                self._event(event)

    def _other(self, job: str, line: LogLine) -> None:
        text = self.redactor.text(line.text)
        self.last.setdefault(job, deque(maxlen=_LAST_LINES)).append(text)
        self.emit(
            events.StageNote(stage=line.host, level="info", code=LOG_CODE, message=text)
        )

    def _event(self, event: Event) -> None:
        if isinstance(event, events.PlanReady | events.BuildFinished):
            return  # of one host; the whole is told by `begin` and `end`
        if event.stage in self.finished and isinstance(
            event, events.StageCached | events.StageProgress
        ):
            return
        if isinstance(event, events.StageFinished | events.StageCached):
            self.finished[event.stage] = event
        self.emit(event)

    def end(self, *, ok: bool, seconds: float) -> None:
        """Tell of the end of all jobs."""
        built = sum(isinstance(e, events.StageFinished) for e in self.finished.values())
        self.emit(
            events.BuildFinished(
                ok=ok,
                seconds=round(seconds, 3),
                num_built=built,
                num_cached=len(self.finished) - built,
            )
        )
