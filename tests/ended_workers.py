"""A stage's worker as a process of its own, ended in the middle of its work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import lmi_build
from lmi_build.spi import Job

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORKER = """\
import json, sys
from importlib import import_module
from pathlib import Path
from lmi_build.events import ignore
from lmi_build.spi import Job

given = json.loads(sys.stdin.read())
for name in ("out", "state"):
    given[name] = Path(given[name])
given["inputs"] = {role: Path(x) for role, x in given["inputs"].items()}
import_module(sys.argv[1]).run(Job(**given), ignore)
"""


def end_worker(
    job: Job, module: str, *, said: str, search_path: Sequence[str]
) -> tuple[int, int]:
    """
    Start a worker, and end it as soon as it says something.

    Args:
        job: What it is told.
        module: Whose `run` it is.
        said: Part of the line after which it is ended.
        search_path: Where it finds modules before this package.

    Returns:
        Its exit status and its process id.
    """
    package = str(Path(lmi_build.__file__).parent.parent)
    values = {name: getattr(job, name) for name in Job.__slots__}
    worker = subprocess.Popen(
        [sys.executable, "-u", "-c", _WORKER, module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join((*search_path, package))},
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(values, default=str))
    worker.stdin.close()
    for line in worker.stdout:
        if said in line:
            break

    worker.terminate()
    status = worker.wait()
    worker.stdout.close()
    return status, worker.pid
