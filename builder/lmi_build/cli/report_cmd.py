"""`report`: an artifact's errors, bits, size and time on one page."""

from __future__ import annotations

from pathlib import Path

import click

from lmi_build import artifacts
from lmi_build.cli.artifact_cmd import Reach, reachable
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, say
from lmi_build.units import format_bytes


@click.command()
@click.argument("artifact")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write [default: ARTIFACT.report.html, beside the artifact].",
)
@reachable
@with_common_options
@click.pass_obj
def report(state: State, *, artifact: str, out: Path | None, at: Reach) -> None:
    """
    Write a page about an artifact: error per layer, bits per weight, size and time.

    ARTIFACT is a folder or an S3 prefix. The page is one HTML file that loads nothing.
    """
    page, name = artifacts.report_page(at(artifact), state.settings())
    if out is None:
        local = "://" not in artifact
        beside = Path(artifact).absolute() if local else Path.cwd() / name
        out = beside.with_name(f"{beside.name}.report.html")
    artifacts.write_page(page, out)
    if state.output != "text":
        data({"path": str(out), "name": name, "bytes": len(page.encode())})
        return
    say(state, f"report of {name}, {format_bytes(len(page.encode()))}:")
    click.echo(str(out))
