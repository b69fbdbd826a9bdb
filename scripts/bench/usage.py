"""
What a command costs: wall and CPU seconds, and the most memory it held.

Wall and CPU seconds (user and system) are the command's and its children's, from
`wait4`. Peak memory is the larger of two readings: the sum of resident sets over the
process tree, sampled every 50 ms from /proc, and the kernel's own high-water mark of
the largest process. Pages of mapped files count as soon as they were touched.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SAMPLE_SECONDS = 0.05


class CommandFailed(SystemExit):
    """A command failed or ran out of time; ends the program unless it is caught."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """
    What one command cost.

    Args:
        wall: Seconds.
        cpu: User and system seconds, children included.
        peak: Bytes, see the module's text.
    """

    wall: float
    cpu: float
    peak: int


def tree_rss(root: int) -> int:
    """Resident bytes of a process and everything below it; 0 once it is gone."""
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total


@dataclass(kw_only=True, slots=True)
class _Seen:
    """What was seen of a running command: its largest memory, and its end by us."""

    peak: int = 0
    late: bool = False


@contextmanager
def _watched(pid: int, timeout: float | None) -> Iterator[_Seen]:
    """Look at a process group while it runs, and kill it after its time."""
    started, seen, done = time.monotonic(), _Seen(), threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            seen.peak = max(seen.peak, tree_rss(pid))
            if timeout and time.monotonic() - started > timeout and not seen.late:
                seen.late = True
                os.killpg(pid, signal.SIGKILL)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield seen
    finally:
        done.set()
        sampler.join()


def measure(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    timeout: float | None = None,
) -> Usage:
    """
    Run a command to its end; its standard output goes to `log`, beside its errors.

    Args:
        command: Program and arguments; it gets a process group of its own.
        environment: All that it sees.
        log: File for its output; its errors go to the same name with `.err`.
        timeout: Seconds after which the whole group is killed.

    Raises:
        CommandFailed: It ended with another status than 0, or was killed.
    """
    errors = log.with_suffix(".err")
    with log.open("wb") as out, errors.open("wb") as err:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=out,
            stderr=err,
            cwd=log.parent,
            start_new_session=True,
        )
        with _watched(process.pid, timeout) as seen:
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if seen.late:
        raise CommandFailed(f"killed after {timeout:g} s")
    if process.returncode:
        tail = "\n".join(errors.read_text(errors="replace").splitlines()[-15:])
        raise CommandFailed(
            f"{command[0]} ended with {process.returncode}, {errors}:\n{tail}"
        )
    return Usage(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        peak=max(seen.peak, usage.ru_maxrss * 1024),
    )


def environment(home: Path, *, threads: int) -> dict[str, str]:
    """What every measured command sees: nothing of the user's but the path."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
