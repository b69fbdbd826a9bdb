"""
What a job says while it runs: events on standard output, and its message so far.

The message file is there from the first moment on and names the stage that runs, so
that a container which is killed without a word still leaves one.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build import events
from lmi_build.execute.redact import Redactor
from lmi_build.sagemaker.message import write_message
from lmi_build.values.job import JobResult

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue
    from lmi_build.sagemaker.places import Places
    from lmi_build.store.store import Store

# Each line becomes an event of CloudWatch; a watcher needs no more than this.
_PROGRESS_SECONDS = 2.0


@dataclass(kw_only=True, slots=True)
class Watch:
    """
    The voice of one container.

    Args:
        places: Where its message goes.
        redactor: Of the secrets known so far.
        name: The job's name.
        host: This container's.
        tools: Versions it has.
        max_runtime_seconds: The job's limit, once it is known.
        store: The store, once it is open.
        alone: Whether the job cannot reach the shared store.
        running: The stage in work, or an empty string.
        rows: Finished stages, as `JobResult.stages` has them.
    """

    places: Places
    redactor: Redactor = field(default_factory=lambda: Redactor(()))
    name: str = ""
    host: str = ""
    tools: dict[str, str] = field(default_factory=dict)
    max_runtime_seconds: int = 0
    store: Store | None = None
    alone: bool = False
    running: str = ""
    rows: list[dict[str, JSONValue]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _told: dict[str, float] = field(default_factory=dict)

    def emit(self, event: events.Event) -> None:
        """Print an event as a line, and keep what the result needs of it."""
        with self._lock:
            if isinstance(event, events.StageProgress) and not self._worth(event):
                return
            self._keep(event)
            print(self.redactor.text(events.to_json(event)), flush=True)  # noqa: T201
        if isinstance(event, events.StageStarted):
            self.foretell()

    def say(self, text: str) -> None:
        """Print a line for people."""
        print(self.redactor.text(text), file=sys.stderr, flush=True)  # noqa: T201

    def foretell(self) -> None:
        """Leave the message that holds if this process is killed now."""
        # Where even that cannot be written, the end of the job says why.
        with suppress(OSError):
            write_message(self.places, self.killed(), self.redactor)

    def killed(self) -> JobResult:
        """What is true when nothing else was said."""
        where = self.running or "before the first stage"
        return self.result(
            exit_code=137,
            code="job.killed",
            message=f"{where}: the container ended without a word, most likely killed"
            " for want of memory",
            hints=("choose an instance with more memory: `job.instance`",),
        )

    def result(
        self,
        *,
        exit_code: int,
        code: str = "",
        message: str,
        hints: tuple[str, ...] = (),
        artifacts: tuple[dict[str, JSONValue], ...] = (),
    ) -> JobResult:
        """How the job ends, with what is known of it."""
        return JobResult(
            name=self.name,
            host=self.host,
            ok=exit_code == 0,
            exit_code=exit_code,
            code=code,
            message=self.redactor.text(message),
            hints=tuple(self.redactor.text(hint) for hint in hints),
            stages=tuple(self.rows),
            artifacts=artifacts,
            tools=self.tools,
        )

    def _worth(self, event: events.StageProgress) -> bool:
        now = time.monotonic()
        last = self._told.get(event.stage, float("-inf"))
        if event.done < event.total and now - last < _PROGRESS_SECONDS:
            return False
        self._told[event.stage] = now
        return True

    def _keep(self, event: events.Event) -> None:
        if isinstance(event, events.StageStarted):
            self.running = event.stage
        elif isinstance(event, events.StageFinished | events.StageCached):
            built = isinstance(event, events.StageFinished)
            self.running = ""
            self.rows.append(
                {
                    "name": event.stage,
                    "key": event.key,
                    "cached": not built,
                    "seconds": event.seconds
                    if isinstance(event, events.StageFinished)
                    else 0.0,
                    "out_bytes": event.out_bytes,
                }
            )
