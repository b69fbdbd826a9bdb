"""What finished work leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.digest import Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """
    One file of a stored tree.

    Args:
        path: Relative, with forward slashes.
        digest: Name of its content.
        size: Bytes.
    """

    path: str
    digest: Digest
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """
    What a stage cost.

    Args:
        seconds: Wall time of the worker.
        cpu_seconds: User and system time of the worker and its children.
        peak_rss_bytes: Largest resident set of one of its processes.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """
    A committed result.

    Args:
        key: Name of the work.
        digest: Name of the content.
        entries: Its files, sorted by path.
        measure: What it cost when it was built.
    """

    key: Digest
    digest: Digest
    entries: tuple[Entry, ...]
    measure: Measure

    @property
    def out_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """One line of the table a build prints."""

    name: str
    kind: str
    result: StageResult
    cached: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """
    A whole build.

    Args:
        rows: Every stage in the order it was done.
        artifacts: Artifact name to the result of each kind.
        seconds: Wall time.
        record_dir: Folder with the logs and the event stream of this run.
    """

    rows: tuple[StageRow, ...]
    artifacts: Mapping[str, Mapping[str, StageResult]]
    seconds: float
    record_dir: Path

    @property
    def num_built(self) -> int:
        """Stages that a worker ran for."""
        return sum(not row.cached for row in self.rows)
