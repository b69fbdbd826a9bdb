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


def _use(ctx: click.Context, _param: click.Parameter, told: Path | None) -> Path | None:
    """The file that counts; its rows are known while the command runs."""
    from lmi_build.cli.options import State

    state = ctx.find_object(State)
    path = catalog_path(state, told) if state is not None else told
    if path is not None:
        from lmi_build.catalog.instances import using
        from lmi_build.catalog.market import read_market
        from lmi_build.catalog.prices import using_prices

        market = read_market(path)
        ctx.with_resource(using(market.instances))
        ctx.with_resource(using_prices(market.prices))
    return path


def _option(*, exposed: bool) -> Callable[[F], F]:
    return click.option(
        "--catalog",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"Instances, devices and prices of your own, over ours [{VARIABLE}].",
        callback=_use,
        expose_value=exposed,
    )


# For commands that ask the market themselves, and for those that only plan.
with_catalog: Callable[[F], F] = _option(exposed=True)
knows_catalog: Callable[[F], F] = _option(exposed=False)


def catalog_path(state: State, told: Path | None) -> Path | None:
    """The file of the option, else that of the environment, else none."""
    if told is not None:
        return told
    named = state.environ.get(VARIABLE)
    return Path(named).expanduser() if named else None
