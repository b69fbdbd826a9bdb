"""
Showing a build while it runs.

On a terminal, one live line a stage; elsewhere, plain lines that a log can keep; for
programs, the events themselves.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from lmi_build import events
from lmi_build.digest import short
from lmi_build.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from lmi_build.cli.options import State
    from lmi_build.events import Emit, Event

# A plain log gets a progress line no more often than this, in seconds.
_PLAIN_SECONDS = 10.0


@contextmanager
def watching(state: State) -> Iterator[Emit]:
    """Give the sink that shows events the way the user wants them."""
    if state.output == "jsonl":
        yield lambda event: click.echo(events.to_json(event))
    elif state.quiet:
        yield events.ignore
    elif state.live:
        with _LiveTree() as tree:
            yield tree.show
    else:
        yield _PlainLines(verbose=state.verbose).show


def note_line(event: events.StageNote) -> str:
    """A note as one line."""
    word = "warning" if event.level == "warning" else "note"
    return f"{word}: {event.stage}: {event.message}"


def finished_line(event: events.StageFinished) -> str:
    """What a stage cost, as one line."""
    return (
        f"{event.stage}  built {short(event.key)} in {format_seconds(event.seconds)}"
        f" ({event.cpu_seconds:.1f} CPU s, peak {format_bytes(event.peak_rss_bytes)},"
        f" {format_bytes(event.out_bytes)} out)"
    )


class _PlainLines:
    """
    One line per thing that happened, for logs.

    Args:
        verbose: Whether every progress step is shown.
    """

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._last = time.monotonic()

    def show(self, event: Event) -> None:
        """Print an event, if it deserves a line."""
        line = self._line(event)
        if line:
            click.echo(line, err=True)

    def _line(self, event: Event) -> str | None:
        if isinstance(event, events.StageStarted):
            self._last = time.monotonic()
            return f"{event.stage}  started, log {event.log}"
        if isinstance(event, events.StageCached):
            return f"{event.stage}  cached {short(event.key)}"
        if isinstance(event, events.StageFinished):
            return finished_line(event)
        if isinstance(event, events.StageNote):
            return note_line(event)
        if isinstance(event, events.StageProgress) and self._due():
            return f"{event.stage}  {progress_text(event)}"
        return None

    def _due(self) -> bool:
        now = time.monotonic()
        if not self._verbose and now - self._last < _PLAIN_SECONDS:
            return False
        self._last = now
        return True


def progress_text(event: events.StageProgress) -> str:
    """`12 of 30 blocks`, or sizes for bytes."""
    if event.unit == "bytes":
        return f"{format_bytes(event.done)} of {format_bytes(event.total)}"
    return f"{event.done} of {event.total} {event.unit}"


class _LiveTree:
    """A line for every stage, redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._rows: dict[str, tuple[str, str]] = {}
        self._started: dict[str, float] = {}
        self._console = Console(stderr=True)
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=8,
            transient=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """Take an event into the picture."""
        if isinstance(event, events.PlanReady):
            self._rows = dict.fromkeys(event.stages, ("waiting", ""))
        elif isinstance(event, events.StageStarted):
            self._started[event.stage] = time.monotonic()
            self._rows[event.stage] = ("running", "")
        elif isinstance(event, events.StageProgress):
            self._started.setdefault(event.stage, time.monotonic())
            self._rows[event.stage] = ("running", progress_text(event))
        elif isinstance(event, events.StageCached):
            self._rows[event.stage] = ("cached", short(event.key))
        elif isinstance(event, events.StageFinished):
            text = (
                f"{format_seconds(event.seconds)}, peak"
                f" {format_bytes(event.peak_rss_bytes)},"
                f" {format_bytes(event.out_bytes)} out"
            )
            self._rows[event.stage] = ("built", text)
        elif isinstance(event, events.StageFailed):
            self._rows[event.stage] = ("failed", event.code)
        elif isinstance(event, events.StageNote):
            self._live.console.print(note_line(event), markup=False, highlight=False)

    def _told(self, name: str, what: str, detail: str) -> str:
        if what == "running":
            seconds = time.monotonic() - self._started[name]
            return f"{format_seconds(seconds)}  {detail}"
        return detail if what == "built" else f"{what} {detail}"

    def _draw(self) -> Any:
        from rich.text import Text

        looks = {
            "waiting": ("  ", "dim"),
            "running": ("> ", "cyan"),
            "cached": ("= ", "green"),
            "built": ("+ ", "green"),
            "failed": ("x ", "red"),
        }
        text = Text(no_wrap=True, overflow="ellipsis")
        width = max((len(name) for name in self._rows), default=0)
        for name, (what, detail) in self._rows.items():
            mark, color = looks[what]
            text.append(mark, style=f"bold {color}")
            text.append(name.ljust(width), style="dim" if what == "waiting" else "")
            text.append(f"  {self._told(name, what, detail)}\n")
        text.rstrip()
        return text
