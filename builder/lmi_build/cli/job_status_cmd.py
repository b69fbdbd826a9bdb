"""`job status`, `logs`, `list` and `cancel`: looking at jobs, and stopping them."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lmi_build.cli.catalog_option import knows_catalog
from lmi_build.cli.job_options import takes_targets
from lmi_build.cli.job_show import jobs_table, meant, num_jobs
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, data_line, say, table
from lmi_build.digest import short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.jobs.cancel import Cancelled
    from lmi_build.jobs.logs import LogLine
    from lmi_build.jobs.status import JobRow
    from lmi_build.jobs.submission import SubmittedJob
    from lmi_build.jobs.submit import Ground


@click.command()
@takes_targets
@knows_catalog
@with_common_options
@click.pass_obj
def status(state: State, *, targets: Sequence[str], single: bool) -> None:
    """Show jobs and the state of each of their stages in the store."""
    from lmi_build.jobs.status import status as look

    rows: list[JobRow] = []
    with meant(state, state.settings(), targets, single=single) as found:
        for ground, _ in found:
            rows += look(ground)
    if state.output != "text":
        data([asdict(row) for row in rows])
        return
    click.echo(jobs_table(rows))
    cells = [
        [stage["name"], row.name, stage["state"], short(stage["key"])]
        for row in rows
        for stage in row.stages
    ]
    if cells:
        click.echo("\n" + table(["stage", "job", "state", "key"], cells))
    for row in rows:
        if row.cause:
            click.echo(f"\n{row.name}: {row.cause}")
        if row.url:
            say(state, f"{row.name}: {row.url}")
        if row.usd is not None:
            say(state, f"{row.name}: price of {row.price_source}")


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@with_common_options
@click.pass_obj
def logs(state: State, *, name: str, follow: bool) -> None:
    """Print what a job's hosts said, from CloudWatch."""
    from lmi_build.execute.redact import Redactor
    from lmi_build.jobs import service as aws
    from lmi_build.jobs.find import find_job
    from lmi_build.jobs.logs import LogTail

    settings = state.settings()
    hide = Redactor(settings.secret_values()).text
    service = aws.connect(settings)
    try:
        job = find_job(service, name)
        tail = LogTail(service, job.kind, name)
        kept: list[dict[str, object]] = []
        while True:
            for line in tail.poll():
                document = {**asdict(line), "text": hide(line.text)}
                kept.append(document)
                _print_line(state, line, document)
            ended = aws.describe(service, job.kind, name)
            if not follow or tail.refused or ended is None or ended.has_ended:
                break
            time.sleep(service.patience.poll_seconds)
    finally:
        service.close()
    if tail.refused:
        raise tail.refused
    if state.output == "json":
        data(kept)
    elif not kept:
        say(state, f"{name} has said nothing yet")


def _print_line(state: State, line: LogLine, document: dict[str, object]) -> None:
    if state.output == "jsonl":
        data_line(document)
    elif state.output == "text":
        click.echo(f"{line.host}  {document['text']}")


@click.command("list")
@click.option("--name", "part", default="", help="Only names that have this in them.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="How many of each kind of job are looked at, newest first.",
)
@knows_catalog
@with_common_options
@click.pass_obj
def list_(state: State, *, part: str, limit: int) -> None:
    """List our jobs, newest first, with state, age and cost so far."""
    from lmi_build.jobs.service import connect
    from lmi_build.jobs.status import list_jobs

    settings = state.settings()
    service = connect(settings)
    try:
        store = settings.store.rstrip("/")
        rows = list_jobs(service, name_contains=part, store=store, limit=limit)
    finally:
        service.close()
    if state.output != "text":
        data([asdict(row) for row in rows])
        return
    if rows:
        click.echo(jobs_table(rows))
    say(state, f"{num_jobs(len(rows))} in {service.region}")


@click.command()
@takes_targets
@knows_catalog
@with_common_options
@click.pass_obj
def cancel(state: State, *, targets: Sequence[str], single: bool) -> None:
    """
    Stop jobs, wait until they have stopped, and clear what they hold.

    A recipe stands for all its jobs, a name for one. Results and half-done work are
    kept: what is submitted again goes on there.
    """
    from lmi_build.jobs.cancel import cancel as stop

    rows: list[Cancelled] = []
    with meant(state, state.settings(), targets, single=single) as found:
        for ground, names in found:
            rows += stop(ground, _attempts(ground, names))
    if state.output != "text":
        data([asdict(row) for row in rows])
        return
    for row in rows:
        verb = "stopped" if row.stopped else f"was {row.status} already"
        kept = f"{len(row.built)} results kept"
        if row.with_state:
            kept += f", half-done work of {', '.join(row.with_state)} kept"
        if row.leases:
            kept += f", {row.leases} claims taken away"
        say(state, f"{row.name} {verb}; {kept}")
    say(state, "submit again to go on where they were")


def _attempts(ground: Ground, names: list[str]) -> list[tuple[SubmittedJob, str]]:
    """The jobs that are meant, with the names of their attempts."""
    from lmi_build.jobs.submit import latest

    if not names:
        return [(j, latest(ground.service, j)[0]) for j in ground.submission.jobs]
    found = []
    for name in names:
        job = ground.submission.job(name)
        assert job is not None  # noqa: S101 - the name led to the submission
        found.append((job, name))
    return found
