"""Starting one stage as a worker process, watching it, and ending it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import lmi_build
from lmi_build.errors import DoesNotFit, LmiBuildError, StageFailed, error_from_json
from lmi_build.events import from_json
from lmi_build.toolchains.environment import (
    QUIET_VARIABLES,
    extensions_dir,
    in_use,
)
from lmi_build.values.result import Measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.events import Emit
    from lmi_build.execute.redact import Redactor
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Stage

# Time between asking a worker to end and ending it, in seconds.
_GRACE_SECONDS = 5.0
_LOG_TAIL_LINES = 20

# How a worker waits and gets its memory, whatever it does.
PROCESS_VARIABLES = {
    # Threads that spin while they wait cost more than they save where a stage
    # shares its cores: one float window took 2.0 s instead of 17.1 s.
    "OMP_WAIT_POLICY": "PASSIVE",
    # But they do spin for a tenth of a millisecond, the time between two products:
    # falling asleep and waking cost quantizing half of its wall time.
    "GOMP_SPINCOUNT": "30000",
    # More arenas would only keep freed blocks apart and raise the peak.
    "MALLOC_ARENA_MAX": "2",
    # Large buffers come in pages of 2 MiB where the kernel has them: clearing and
    # finding pages of 4 KiB took a tenth of quantizing's time.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """
    One try at a stage.

    Args:
        stage: What to do.
        inputs: Role to folder.
        scratch: Folder of this attempt; `out`, `tmp` and `home` are made in it.
        state: Folder that outlives the attempt.
        log: File for everything the worker prints.
    """

    stage: Stage
    inputs: Mapping[str, Path]
    scratch: Path
    state: Path
    log: Path

    @property
    def out(self) -> Path:
        """The folder that becomes the result."""
        return self.scratch / "out"


def run_worker(
    attempt: Attempt, *, settings: Settings, redactor: Redactor, emit: Emit
) -> Measure:
    """
    Run a stage in a process of its own and wait for it.

    Raises:
        LmiBuildError: What the worker reported, or that it was killed.
        KeyboardInterrupt: The user stopped us; the worker is gone.
    """
    with _interpreter(attempt.stage, settings) as python:
        return _run(python, attempt, settings=settings, redactor=redactor, emit=emit)


@contextmanager
def _interpreter(stage: Stage, settings: Settings) -> Iterator[str]:
    """The Python that a stage runs in; a toolchain's is held while it does."""
    if not stage.toolchain:
        yield sys.executable
        return
    with in_use(stage.toolchain, settings) as python:
        yield str(python)


def _run(
    python: str,
    attempt: Attempt,
    *,
    settings: Settings,
    redactor: Redactor,
    emit: Emit,
) -> Measure:
    read_fd, write_fd = os.pipe()
    request = _write_request(attempt, write_fd, settings)
    started = time.monotonic()
    process = subprocess.Popen(
        [python, "-X", "faulthandler", "-m", "lmi_build.worker", str(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(write_fd,),
        env=worker_environment(attempt, settings),
        cwd=attempt.scratch,
        start_new_session=True,
    )
    os.close(write_fd)
    try:
        pump = _pump(process.stdout, attempt.log, redactor)
        error = _watch(read_fd, emit, redactor)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        _end_group(process.pid)
        pump.join()
    except BaseException:
        _end(process)
        raise
    finally:
        if process.stdin is not None:
            process.stdin.close()
    if error is not None:
        raise error
    if process.returncode != 0:
        raise _death(attempt, process.returncode)
    return Measure(
        seconds=round(time.monotonic() - started, 3),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
        peak_rss_bytes=usage.ru_maxrss * 1024,
    )


def _write_request(attempt: Attempt, events_fd: int, settings: Settings) -> Path:
    for name in ("out", "tmp", "home"):
        (attempt.scratch / name).mkdir(parents=True, exist_ok=True)
    stage = attempt.stage
    path = attempt.scratch / "request.json"
    document = {
        "stage": stage.name,
        "entry": stage.entry,
        "params": dict(stage.params),
        "settings": {"memory_bytes": settings.memory_bytes, **stage.job},
        "inputs": {role: str(folder) for role, folder in attempt.inputs.items()},
        "out": str(attempt.out),
        "state": str(attempt.state),
        "events_fd": events_fd,
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def worker_environment(attempt: Attempt, settings: Settings) -> dict[str, str]:
    """
    Everything a worker sees of the world.

    Nothing is inherited: a variable that is not written here cannot change a result.
    """
    given = settings.worker_environment
    package_root = _package_root(attempt)
    python_path = os.pathsep.join(
        [package_root, *filter(None, [given.get("PYTHONPATH")])]
    )
    threads = str(settings.threads or len(os.sched_getaffinity(0)))
    environment = {
        **given,
        "HOME": str(attempt.scratch / "home"),
        "TMPDIR": str(attempt.scratch / "tmp"),
        "PYTHONPATH": python_path,
        "PYTHONNOUSERSITE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        **PROCESS_VARIABLES,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
    }
    if attempt.stage.toolchain:
        environment |= QUIET_VARIABLES
        extensions = extensions_dir(attempt.stage.toolchain, settings)
        environment["TORCH_EXTENSIONS_DIR"] = str(extensions)
        environment["GPTQMODEL_TORCH_EXTENSIONS_DIR"] = str(extensions)
    if not attempt.stage.secrets:
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for group in attempt.stage.secrets:
        environment |= settings.secrets.get(group, {})
    return environment


def _package_root(attempt: Attempt) -> str:
    """
    The folder that a worker finds this package in.

    A toolchain's interpreter gets one with nothing else in it: an installed package
    lies among all others, whose versions would hide the toolchain's own.
    """
    package = Path(lmi_build.__file__).parent
    if not attempt.stage.toolchain:
        return str(package.parent)
    root = attempt.scratch / "path"
    root.mkdir(parents=True, exist_ok=True)
    link = root / package.name
    if not link.is_symlink():
        link.symlink_to(package, target_is_directory=True)
    return str(root)


def _pump(stream: BinaryIO | Any, log: Path, redactor: Redactor) -> threading.Thread:
    """Copy what a worker prints into its log, without secrets."""
    log.parent.mkdir(parents=True, exist_ok=True)

    def copy() -> None:
        with log.open("a", encoding="utf-8") as sink, stream:
            for line in stream:
                sink.write(redactor.text(line.decode("utf-8", "replace")))

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _watch(fd: int, emit: Emit, redactor: Redactor) -> LmiBuildError | None:
    """Pass events on until the worker closes its end; returns the error it sent."""
    error = None
    with os.fdopen(fd, encoding="utf-8") as channel:
        for line in channel:
            clean = redactor.text(line)
            if clean.startswith('{"error"'):
                error = error_from_json(json.loads(clean)["error"])
            else:
                emit(from_json(clean))
    return error


def _end_group(pid: int) -> None:
    """End what a worker left running; it would hold the log open for ever."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker and everything it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)
    _end_group(process.pid)
    process.wait()


def _death(attempt: Attempt, returncode: int) -> LmiBuildError:
    name = attempt.stage.name
    tail = _tail(attempt.log)
    if returncode == -signal.SIGKILL:
        return DoesNotFit(
            f"{name}: the worker was killed (SIGKILL), most likely for want of memory",
            code="stage.killed",
            hints=(
                "free memory or use a larger machine; `plan` shows what a stage needs",
                f"log: {attempt.log}",
            ),
        )
    how = f"signal {-returncode}" if returncode < 0 else f"status {returncode}"
    return StageFailed(
        f"{name}: the worker ended with {how} and no word\n{tail}",
        code="stage.died",
        hints=(f"log: {attempt.log}",),
    )


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return "\n".join(f"  | {line}" for line in lines[-_LOG_TAIL_LINES:])
