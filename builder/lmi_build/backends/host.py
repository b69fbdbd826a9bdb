"""What the machine that builds has of memory."""

from __future__ import annotations

import re
from pathlib import Path

from lmi_build.errors import ToolMissing


def free_host_bytes(meminfo: str | None = None) -> int:
    """
    Memory that a new process can have.

    Args:
        meminfo: Text of /proc/meminfo; None reads it.

    Raises:
        ToolMissing: `tool.memory-unknown`.
    """
    text = meminfo if meminfo is not None else Path("/proc/meminfo").read_text("ascii")
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    if match is None:
        raise ToolMissing(
            "/proc/meminfo does not say how much memory is available",
            code="tool.memory-unknown",
            hints=("build on Linux",),
        )
    return int(match[1]) * 1024
