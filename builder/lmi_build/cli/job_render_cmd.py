"""`job render`: the requests of the jobs, written and checked, nothing sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmi_build import api
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command()
@click.argument(
    "recipes",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="RECIPE...",
)
@with_common_options
@click.pass_obj
def render(state: State, *, recipes: Sequence[Path]) -> None:
    """Write the requests of the jobs and check them; nothing is sent."""
    loaded = [
        recipe
        for file in recipes
        for recipe in api.load_recipe(file, overrides=state.overrides)
    ]
    data({"recipes": [recipe.name for recipe in loaded]})
