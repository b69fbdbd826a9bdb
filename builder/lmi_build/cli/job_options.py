"""Arguments that several commands of `job` take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

takes_recipes = click.argument(
    "recipes",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="RECIPE...",
)
in_one_job = click.option("--single", is_flag=True, help="Keep every stage in one job.")


def takes_targets(function: F) -> F:
    """Let a command be told which jobs are meant, by their names or recipes."""
    targets = click.argument(
        "targets", nargs=-1, required=True, metavar="NAME|RECIPE..."
    )
    single = click.option(
        "--single", is_flag=True, help="Of a recipe that was submitted with `--single`."
    )
    return targets(single(function))
