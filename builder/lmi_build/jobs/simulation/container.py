"""
One container of a simulated job: a process that sees its folders as `/opt/ml`.

Where this user may, it lives in mount and process namespaces of its own, so that it is
process 1, as in a container, and nothing it started outlives it. Elsewhere it is told
by `LMI_BUILD_ML_ROOT` where its folders are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.jobs.simulation.tree import ML
from lmi_build.sagemaker.places import ROOT_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_UNSHARE = (
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--mount-proc",
)
_AS_ROOT = ("--user", "--map-root-user")
# $1 stands for /opt/ml, $2 is a folder in it that holds $3 bytes; 0 leaves it alone.
_MOUNT = """\
set -e
if [ "$3" != 0 ]; then
    mkdir -p -- "$2"
    mount -t tmpfs -o size="$3" tmpfs "$2"
fi
mount --rbind "$1" /opt/ml
shift 3
exec "$@"
"""

# Where no small volume can be mounted, no file may be larger than one.
_LIMIT = 'ulimit -f "$1"; shift; exec "$@"'


@cache
def namespace() -> tuple[str, ...]:
    """The command that gives a process its own namespaces; empty where none may."""
    try:
        Path(ML).mkdir(parents=True, exist_ok=True)
    except OSError:
        return ()
    as_root = () if os.geteuid() == 0 else _AS_ROOT
    command = (*_UNSHARE, *as_root)
    trial = [*command, "sh", "-c", f"mount --bind /tmp {ML}"]
    try:
        done = subprocess.run(trial, capture_output=True, check=False)
    except OSError:
        return ()
    return command if done.returncode == 0 else ()


@dataclass(kw_only=True)
class Container:
    """
    A running container.

    Args:
        root: What stands for `/opt/ml`.
        command: Entry point and arguments, as the request has them.
        environment: Everything it sees.
        log: File for all it prints.
        on_line: Told each line.
        volume: Folder below `root` that holds only `volume_bytes`; 0 sets no limit.
        volume_bytes: Bytes of it.
        mounted: Whether to use namespaces.
        network: Whether it has one; without namespaces it always has.
    """

    root: Path
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    on_line: Callable[[str], None]
    volume: Path
    volume_bytes: int = 0
    mounted: bool = True
    network: bool = True
    _process: subprocess.Popen[bytes] | None = None
    _reader: threading.Thread | None = None
    _inside: bool = False
    _killed: bool = False

    def start(self) -> None:
        """Start it."""
        inside = namespace() if self.mounted else ()
        self._inside = bool(inside)
        environment = dict(self.environment)
        if inside:
            place = [str(self.root), str(self.volume), str(self.volume_bytes)]
            cut_off = () if self.network else ("--net",)
            line = [
                *inside,
                *cut_off,
                "bash",
                "-c",
                _MOUNT,
                "container",
                *place,
                *self.command,
            ]
        else:
            environment[ROOT_VARIABLE] = str(self.root)
            line = [
                word.replace(ML, str(self.root), 1) if word.startswith(ML) else word
                for word in self.command
            ]
            if self.volume_bytes:
                kib = str(self.volume_bytes >> 10)
                line = ["bash", "-c", _LIMIT, "container", kib, *line]
        self._process = subprocess.Popen(
            line,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Its exit status, a signal as 128 plus its number; None while it runs."""
        assert self._process is not None  # noqa: S101 - it was started
        try:
            status = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        if self._reader is not None:
            self._reader.join(10)
        if self._killed and status:
            # `unshare` tells the end of its child in its own way.
            return 128 + signal.SIGKILL
        return status if status >= 0 else 128 - status

    def terminate(self) -> None:
        """Send SIGTERM, as SageMaker does before it ends a job."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, with everything in it."""
        self._killed = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None  # noqa: S101 - it was started
        inside = _children(self._process.pid) if self._inside else ()
        for pid in inside or (self._process.pid,):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _read(self) -> None:
        assert self._process is not None  # noqa: S101 - it was started
        stream = self._process.stdout
        assert stream is not None  # noqa: S101 - it is a pipe
        with self.log.open("ab") as sink, stream:
            for line in stream:
                sink.write(line)
                sink.flush()
                self.on_line(line.decode("utf-8", "replace").rstrip("\n"))


def _children(pid: int) -> tuple[int, ...]:
    """What `unshare` started: the container's process 1, seen from here."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    except OSError:
        return ()
    return tuple(int(word) for word in text.split())
