"""Running a long command: its words into the log, its last lines kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from lmi_build.spi import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

TAIL_LINES = 20
_NOT_FOUND = 127
# How long lines are still read after the process that printed them has ended.
_LINGER_SECONDS = 5.0
# Probes answer within it or not at all: a container's first start unpacks an image.
_PROBE_SECONDS = 900


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """
    How a command ended.

    Args:
        status: Exit status; negative for a signal.
        tail: Its last lines.
        seconds: How long it took.
        peak_rss_bytes: Largest resident memory of a process of it; 0 where another
            process, such as a container's daemon, started it.
    """

    status: int
    tail: tuple[str, ...]
    seconds: float
    peak_rss_bytes: int


def run_logged(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    hear: Callable[[str], None] | None = None,
) -> Ran:
    """
    Run a command to its end; what it prints goes on to standard output.

    The process stays in the caller's group, so that whoever ends the group ends it.

    Args:
        command: Program and words.
        cwd: Where it runs.
        environment: All its variables.
        hear: Told each line as it comes, without its end.
    """
    started = time.monotonic()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        line = f"{command[0]}: {error.strerror or error}"
        return Ran(status=_NOT_FOUND, tail=(line,), seconds=0.0, peak_rss_bytes=0)
    assert process.stdout is not None  # noqa: S101 - it was asked for
    reader = _Reader(process.stdout, tail, hear)
    reader.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        reader.join(_LINGER_SECONDS)
    except BaseException:
        process.kill()
        process.wait()
        raise
    sys.stdout.flush()
    if reader.error is not None:
        raise reader.error
    return Ran(
        status=process.returncode,
        tail=tuple(tail),
        seconds=round(time.monotonic() - started, 3),
        peak_rss_bytes=usage.ru_maxrss * 1024,
    )


class _Reader(threading.Thread):
    """
    Passes lines on while the process runs.

    A process that is killed may leave children that keep its output open, so that who
    waits for the end of the output waits for ever.
    """

    def __init__(
        self, stream: IO[bytes], tail: deque[str], hear: Callable[[str], None] | None
    ) -> None:
        super().__init__(daemon=True)
        self._stream, self._tail, self._hear = stream, tail, hear
        self.error: BaseException | None = None

    def run(self) -> None:
        """Read to the end of the output."""
        try:
            for raw in self._stream:
                line = raw.decode("utf-8", "replace")
                sys.stdout.write(line)
                sys.stdout.flush()
                # Bars overwrite their line; the last state is what was seen.
                self._tail.append(line.rstrip().rpartition("\r")[2])
                if self._hear is not None:
                    self._hear(line.rstrip("\n"))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self.error = error
        finally:
            self._stream.close()


@contextmanager
def ended_with_us(container: str) -> Iterator[None]:
    """
    End a container when this worker is asked to end, or fails.

    A container is no process of ours: it would go on without anyone to see it.

    Args:
        container: Its name; empty for none.
    """
    if not container:
        yield
        return

    def stop(number: int, frame: object) -> None:
        del frame
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        ask_with(dict(os.environ))(("docker", "rm", "--force", container))
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def ask_with(environment: Mapping[str, str]) -> _Ask:
    """
    A function that runs a small program, for `preflight`.

    Args:
        environment: All its variables.
    """
    return _Ask(environment)


@dataclass(frozen=True, slots=True)
class _Ask:
    environment: Mapping[str, str]

    def __call__(self, command: Sequence[str]) -> Answer:
        try:
            done = subprocess.run(
                list(command),
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_PROBE_SECONDS,
                check=False,
            )
        except OSError as error:
            return Answer(
                status=_NOT_FOUND, output=f"{command[0]}: {error.strerror or error}"
            )
        except subprocess.TimeoutExpired:
            return Answer(
                status=_NOT_FOUND, output=f"no answer in {_PROBE_SECONDS} seconds"
            )
        return Answer(
            status=done.returncode, output=done.stdout.decode("utf-8", "replace")
        )
