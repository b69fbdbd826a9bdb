"""`--catalog FILE`: a user's own instances, devices and prices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from lmi_build.cli.options import State

F = TypeVar("F", bound=Callable[..., Any])
VARIABLE = "LMI_BUILD_CATALOG"

with_catalog: Callable[[F], F] = click.option(
    "--catalog",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Instances, devices and prices of your own, over ours [{VARIABLE}].",
)


def catalog_path(state: State, told: Path | None) -> Path | None:
    """The file of the option, else that of the environment, else none."""
    if told is not None:
        return told
    named = state.environ.get(VARIABLE)
    return Path(named).expanduser() if named else None
