"""`doctor`: what works here, by trying it."""

from __future__ import annotations

from dataclasses import asdict

import click

from lmi_build import api
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, style


@click.command()
@with_common_options
@click.pass_obj
def doctor(state: State) -> int:
    """
    Say which providers work here, with evidence and fixes.

    Each provider's packages are imported in a process of its own, so what is shown
    was seen, not read from metadata. The exit status is 3 when nothing can be built.
    """
    from lmi_build.toolchains.doctor import diagnose

    settings = state.settings()
    rows = diagnose(settings, api.host(settings))
    if state.output != "text":
        data([asdict(row) for row in rows])
    else:
        for row in rows:
            word = "works" if row.works else "missing"
            mark = style(state, word, fg="green" if row.works else "red", bold=True)
            click.echo(f"{row.kind} {row.name}: {mark}\n  {row.evidence}")
            if row.fix:
                click.echo(f"  fix: {row.fix}")
    kinds = {row.kind for row in rows if row.works}
    return 0 if {"quantizer", "backend"} <= kinds else 3
