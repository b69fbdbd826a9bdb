"""
One row of `quantize.py`, seen from the process that quantizes.

A driver reads its job from the file named on the command line, does the work between
`call()`'s braces, and leaves what that cost beside its result. Needs nothing but the
standard library, because drivers run in the environments of other tools.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RECORD = "call.json"


def read_job() -> dict[str, Any]:
    """The job: `model`, `windows`, `out`, `threads` and the method's own options."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return job


def cpu_seconds() -> float:
    """User and system seconds of this process and of its children that ended."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(who) for who in both]
    return sum(part.ru_utime + part.ru_stime for part in used)


def resident_bytes() -> int:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def call(
    job: dict[str, Any], *, distributions: Sequence[str], notes: Sequence[str] = ()
) -> Iterator[None]:
    """
    Measure the quantizing call alone: model loaded before, checkpoint written within.

    Args:
        job: As `read_job` gave it.
        distributions: Packages whose versions are recorded.
        notes: What was changed about the tool so that it runs.
    """
    resident = resident_bytes()
    cpu, wall = cpu_seconds(), time.monotonic()
    yield
    record = {
        "cpu": cpu_seconds() - cpu,
        "wall": time.monotonic() - wall,
        "resident_before": resident,
        "versions": {name: metadata.version(name) for name in distributions},
        "notes": list(notes),
    }
    (Path(job["out"]).parent / RECORD).write_text(json.dumps(record))
