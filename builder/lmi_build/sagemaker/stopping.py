"""
Ending early in good order: SIGTERM, and the time limit before SageMaker's own.

A Training job gets SIGTERM and 120 seconds (API reference, StoppingCondition). For
Processing nothing is promised, so the limit is watched from inside as well.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

STOPPED = "stopped"
LIMIT = "limit"
# What is kept of the limit to save state in: SageMaker's own grace, and a tenth of a
# limit that is shorter than twenty minutes.
_MARGIN_SECONDS = 120.0
_MARGIN_SHARE = 0.1
_SOON_SECONDS = 0.001
# Field 22, counted from the third, which follows the name in parentheses.
_STARTTIME = 19


@dataclass(kw_only=True, slots=True)
class Stop:
    """
    Why the job has to end, once it has to.

    Args:
        on_stop: Called first, with the reason; it must be quick.
        reason: `stopped`, `limit`, or empty.
    """

    on_stop: Callable[[str], None]
    reason: str = ""
    _max_seconds: float = float("inf")

    def watch(self) -> None:
        """Let SIGTERM and SIGINT interrupt the main thread, once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._end(self._told()))
        signal.signal(signal.SIGALRM, lambda *_: self._end(LIMIT))

    def limit(self, max_runtime_seconds: float) -> None:
        """Interrupt some time before the job is ended from outside."""
        self._max_seconds = max_runtime_seconds
        left = usable_seconds(max_runtime_seconds) - age_seconds()
        signal.setitimer(signal.ITIMER_REAL, max(left, _SOON_SECONDS))

    def _told(self) -> str:
        """What a SIGTERM means: at the limit, it is the limit's."""
        return LIMIT if age_seconds() >= usable_seconds(self._max_seconds) else STOPPED

    def done(self) -> None:
        """The work is over: what is written down now is not to be cut short."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def _end(self, reason: str) -> None:
        # What follows saves state; a second signal must not cut it short.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        self.reason = reason
        self.on_stop(reason)
        raise KeyboardInterrupt


def age_seconds() -> float:
    """
    How long this process has run, the script that became it included.

    Source: proc(5), `starttime` of /proc/PID/stat.
    """
    fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2]
    started = int(fields.split()[_STARTTIME]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def usable_seconds(max_runtime_seconds: float) -> float:
    """How long stages may run in a job of this limit."""
    margin = min(_MARGIN_SECONDS, max_runtime_seconds * _MARGIN_SHARE)
    return max(1.0, max_runtime_seconds - margin)


def stop_error(
    reason: str, *, where: str, max_runtime_seconds: int, alone: bool = False
) -> Interrupted:
    """
    What a stopped job says.

    Args:
        reason: Of `Stop`.
        where: The stage that was running, or an empty string.
        max_runtime_seconds: The limit.
        alone: Whether the job cannot reach the shared store, which keeps state.
    """
    at = f" during {where}" if where else ""
    kept = "every finished stage and the state of this one are kept"
    if alone:
        kept = "every finished stage is kept"
    if reason == LIMIT:
        return Interrupted(
            f"the time limit of {max_runtime_seconds} s is reached{at}; {kept}",
            code="job.time-limit",
            hints=(
                f"raise `job.max_runtime_seconds` over {max_runtime_seconds}",
                "submit it again: it goes on where it was",
            ),
        )
    return Interrupted(
        f"stopped{at}; {kept}",
        code="job.stopped",
        hints=("submit it again: it goes on where it was",),
    )
