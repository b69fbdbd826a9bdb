"""The script that starts a container, as it rides in the channel `job`."""

from __future__ import annotations

from pathlib import Path

from lmi_build.values.job import ENTRY_FILE

# What it leaves in the message when it fails before Python runs; tests hold it to them.
ENTRY_CODES = (
    "job.bad-wheel",
    "job.bad-wheels",
    "job.disk-full",
    "job.entry",
    "job.no-python",
    "job.no-wheel",
)


def entry_script() -> bytes:
    """Its bytes; `scripts/` has the same file."""
    return (Path(__file__).parent / ENTRY_FILE).read_bytes()
