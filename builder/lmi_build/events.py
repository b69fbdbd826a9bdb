"""
What a build tells its user, as few typed events.

Events are for people and programs that watch a build: stable, one JSON object per
line (`to_json`, `from_json` are inverse). Logs are for maintainers and go elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanReady:
    """The stages to come, in order."""

    recipe: str
    stages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStarted:
    """A worker begins; `log` is the file its output goes to."""

    stage: str
    key: str
    log: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCached:
    """The store already holds the result."""

    stage: str
    key: str
    digest: str
    out_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StageProgress:
    """`done` of `total` units; only ever sent when the total is known."""

    stage: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageNote:
    """A sentence worth reading; `level` is `info` or `warning`."""

    stage: str
    level: str
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFinished:
    """A stage was built and committed."""

    stage: str
    key: str
    digest: str
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    out_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFailed:
    """A stage ended badly; nothing of it was kept as a result."""

    stage: str
    key: str
    code: str
    message: str
    hints: tuple[str, ...]
    log: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildFinished:
    """The end: `ok` says how."""

    ok: bool
    seconds: float
    num_built: int
    num_cached: int


Event: TypeAlias = (
    PlanReady
    | StageStarted
    | StageCached
    | StageProgress
    | StageNote
    | StageFinished
    | StageFailed
    | BuildFinished
)
Emit: TypeAlias = Callable[[Event], None]

_KINDS: dict[str, type[Event]] = {
    "plan-ready": PlanReady,
    "stage-started": StageStarted,
    "stage-cached": StageCached,
    "stage-progress": StageProgress,
    "stage-note": StageNote,
    "stage-finished": StageFinished,
    "stage-failed": StageFailed,
    "build-finished": BuildFinished,
}
_NAMES = {cls: name for name, cls in _KINDS.items()}


def to_json(event: Event) -> str:
    """One line of JSON, without its newline."""
    return json.dumps(
        {"event": _NAMES[type(event)], **asdict(event)}, ensure_ascii=False
    )


def from_json(line: str) -> Event:
    """
    Read one line that `to_json` wrote.

    Raises:
        ValueError: The line is not an event of this version.
    """
    document: dict[str, Any] = json.loads(line)
    cls = _KINDS.get(document.pop("event", ""))
    if cls is None or {f.name for f in fields(cls)} != set(document):
        msg = f"not an event: {line!r}"
        raise ValueError(msg)
    tuples = {k: tuple(v) for k, v in document.items() if isinstance(v, list)}
    return cls(**{**document, **tuples})


def ignore(event: Event) -> None:
    """The sink for callers who do not watch."""
    del event
