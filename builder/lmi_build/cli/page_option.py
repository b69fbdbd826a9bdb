"""`--html FILE`: what a command found as one page that loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lmi_build.cli.render import say

if TYPE_CHECKING:
    from lmi_build.cli.options import State

F = TypeVar("F", bound=Callable[..., Any])

with_page: Callable[[F], F] = click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write it as one page, too, that loads nothing.",
)


def need_plots(page: Path | None) -> None:
    """Refuse at once what could not be drawn at the end."""
    if page is not None:
        from lmi_build.report.plots import require_plots

        require_plots()


def write_page(state: State, page: Path, markup: str) -> None:
    """Write a page, and say so."""
    from lmi_build import artifacts

    artifacts.write_page(markup, page, option="--html FILE")
    say(state, f"page: {page}")
