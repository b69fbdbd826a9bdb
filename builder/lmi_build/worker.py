"""
One stage in a process of its own: `python -m lmi_build.worker REQUEST`.

REQUEST is a JSON file. Events go as lines to the file descriptor it names; a failure
goes there too, as an `error` document, so that the parent can raise it again. All
other output belongs to the log.

The parent holds the other end of standard input. When it dies, however it dies, that
end closes, and the worker ends itself with everything it started.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lmi_build.errors import (
    DoesNotFit,
    LmiBuildError,
    StageFailed,
    error_to_json,
    is_disk_full,
)
from lmi_build.events import Event, to_json
from lmi_build.spi import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


# How torch says it on one system and another; it has no class of its own for it.
_NO_MEMORY = ("not enough memory", "can't allocate memory")


def main(argv: list[str]) -> int:
    """Run the stage that the request describes; returns the exit status."""
    request = json.loads(Path(argv[1]).read_bytes())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(int(request["events_fd"]), "w", encoding="utf-8") as channel:
        try:
            _run(request, channel)
        except LmiBuildError as error:
            _report(channel, error, request["inputs"])
            return 1
        except Exception as error:  # noqa: BLE001 - the last frame of a process
            traceback.print_exc()
            translated = _translate(error, str(request["stage"]))
            _report(channel, translated, request["inputs"])
            return 1
    return 0


def _run(request: Mapping[str, Any], channel: TextIO) -> None:
    module, _, attribute = str(request["entry"]).partition(":")
    run: Callable[..., None] = getattr(importlib.import_module(module), attribute)
    job = Job(
        stage=request["stage"],
        params=request["params"],
        inputs={role: Path(path) for role, path in request["inputs"].items()},
        out=Path(request["out"]),
        state=Path(request["state"]),
        settings=request["settings"],
    )
    lock = threading.Lock()

    def emit(event: Event) -> None:
        with lock:
            channel.write(to_json(event) + "\n")
            channel.flush()

    run(job, emit)


def _report(channel: TextIO, error: LmiBuildError, inputs: Mapping[str, str]) -> None:
    """Send an error; inputs are named by their role, as their folders will be gone."""
    document = error_to_json(error)
    for role, folder in inputs.items():
        document["message"] = document["message"].replace(folder, role)
        document["hints"] = [hint.replace(folder, role) for hint in document["hints"]]
    channel.write(json.dumps({"error": document}) + "\n")
    channel.flush()


def _translate(error: Exception, stage: str) -> LmiBuildError:
    """Name the failures of a machine; the rest is a bug of ours or of a toolchain."""
    if isinstance(error, OSError) and is_disk_full(error):
        return DoesNotFit(
            f"no space left on the disk: {error}",
            code="store.disk-full",
            hints=("free some space or choose another disk: `--cache-dir DIR`",),
        )
    if isinstance(error, MemoryError) or any(x in str(error) for x in _NO_MEMORY):
        return DoesNotFit(
            f"out of memory: {error}",
            code="stage.out-of-memory",
            hints=("use a machine with more memory; `plan` shows what a stage needs",),
        )
    return StageFailed(
        f"{stage}: {type(error).__name__}: {error}",
        code="stage.crashed",
        hints=("the log has the whole story; if it is our fault, please report it",),
    )


def _end_with_parent() -> None:
    """Wait for the end of standard input, then end this whole process group."""
    while os.read(0, 1):
        pass
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
