"""`job simulate`: the jobs of recipes on this machine, without AWS."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmi_build.cli.catalog_option import knows_catalog
from lmi_build.cli.job_options import takes_recipes
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, say, table
from lmi_build.jobs.simulation.fault import FORMS
from lmi_build.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.events import Event
    from lmi_build.jobs.simulate import Simulated

_TAIL_LINES = 20


@click.command()
@takes_recipes
@click.option(
    "--hosts",
    "num_hosts",
    type=click.IntRange(1, 100),
    help="Hosts of each job [default: what the recipe says].",
)
@click.option("--fault", metavar="FAULT", help=f"What goes wrong: {FORMS}.")
@click.option(
    "--s3",
    "server",
    metavar="URL",
    help="An S3 server on this machine [default: one is started].",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the hosts' folders and logs here.",
)
@click.option("--single", is_flag=True, help="Keep everything in one job.")
@knows_catalog
@with_common_options
@click.pass_obj
@click.pass_context
def simulate(
    ctx: click.Context,
    state: State,
    *,
    recipes: Sequence[Path],
    num_hosts: int | None,
    fault: str | None,
    server: str | None,
    keep: Path | None,
    single: bool,
) -> None:
    """
    Run the jobs of recipes on this machine: same plan, same script, same artifact.

    S3 is a server on localhost, SageMaker is this command: it lays out a host's
    folders, starts the container's script, sends the signals, reads the message and
    copies the outputs. The exit status is the job's.
    """
    from lmi_build.jobs.simulate import Wish
    from lmi_build.jobs.simulate import simulate as run
    from lmi_build.jobs.simulation.fault import parse_fault
    from lmi_build.jobs.union import load_many

    meant = parse_fault(fault) if fault else None
    loaded = load_many(recipes, overrides=state.overrides)
    with ExitStack() as stack:
        if keep is None:
            made = tempfile.TemporaryDirectory(
                prefix="lmi-build-simulate-", ignore_cleanup_errors=True
            )
            scratch = Path(stack.enter_context(made))
        else:
            keep.mkdir(parents=True, exist_ok=True)
            scratch = keep.absolute()
        wish = Wish(
            scratch=scratch,
            num_hosts=num_hosts,
            fault=meant,
            server=server,
            single=single,
            environment=state.environ,
        )
        found = run(
            loaded,
            state.settings(),
            wish,
            emit=lambda host, event: _tell(state, host, event),
        )
        _show(state, found, kept=keep is not None)
    ctx.exit(found.exit_code)


def _tell(state: State, host: str, event: Event) -> None:
    from lmi_build.events import StageFinished, StageStarted, to_json

    if state.output == "jsonl":
        click.echo(to_json(event))
    elif isinstance(event, StageStarted):
        say(state, f"{host}  {event.stage}")
    elif isinstance(event, StageFinished):
        say(state, f"{host}  {event.stage}  built in {format_seconds(event.seconds)}")


def _show(state: State, found: Simulated, *, kept: bool) -> None:
    if state.output != "text":
        data(_document(found))
        return
    head = ["job", "host", "status", "exit", "built", "time"]
    rows = [
        [
            job.name,
            host.host,
            host.status,
            str(host.exit_code),
            str(len(host.built)),
            format_seconds(host.seconds),
        ]
        for job in found.jobs
        for host in job.hosts
    ]
    say(state, "\n" + table(head, rows))
    for job in found.jobs:
        for host in job.hosts:
            if host.message:
                say(state, f"\nmessage of {job.name} {host.host}:\n{host.message}")
            if host.exit_code and not kept:
                log = host.log.read_text("utf-8", "replace").splitlines()
                lines = [line for line in log if not line.startswith('{"event"')]
                say(state, "\n".join(f"  | {x}" for x in lines[-_TAIL_LINES:]))
    not_run = [job.name for job in found.graph.jobs[len(found.jobs) :]]
    if not_run:
        say(state, f"\nnot started: {', '.join(not_run)}")
    for row in found.artifacts:
        where = f"  {row['uri']}" if row["uri"] else ""
        click.echo(f"{row['name']} {row['manifest_digest']}{where}")


def _document(found: Simulated) -> dict[str, Any]:
    jobs = [
        {
            **{k: v for k, v in asdict(job).items() if k != "hosts"},
            "hosts": [{**asdict(host), "log": str(host.log)} for host in job.hosts],
        }
        for job in found.jobs
    ]
    return {
        "ok": found.ok,
        "jobs": jobs,
        "not_started": [job.name for job in found.graph.jobs[len(found.jobs) :]],
        "built": found.built(),
        "keys": {stage.name: stage.key for stage in found.graph.plan.stages},
        "artifacts": [dict(row) for row in found.artifacts],
    }
