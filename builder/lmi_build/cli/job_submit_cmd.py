"""`job submit` and `job wait`: jobs on their way, and at their end."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lmi_build.cli.catalog_option import knows_catalog
from lmi_build.cli.job_options import in_one_job, takes_recipes, takes_targets
from lmi_build.cli.job_show import (
    artifacts_of,
    meant,
    num_jobs,
    placed_document,
    rendered_of,
    show_ended,
    show_placed,
)
from lmi_build.cli.options import State, with_common_options, with_lock_options
from lmi_build.cli.progress import watching
from lmi_build.cli.render import data, say
from lmi_build.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmi_build.jobs.prepare import Ready
    from lmi_build.jobs.submit import Ground, Placed
    from lmi_build.jobs.wait import Outcome
    from lmi_build.values.settings import Settings


@click.command()
@takes_recipes
@in_one_job
@click.option(
    "--wait", "and_wait", is_flag=True, help="Watch the jobs to their end, as `wait`."
)
@knows_catalog
@with_lock_options
@with_common_options
@click.pass_obj
def submit(
    state: State, *, recipes: Sequence[Path], single: bool, and_wait: bool
) -> None:
    """
    Create the jobs of recipes, each once; what they read is sent once.

    A job that runs or is done is taken as it is, one that failed is tried again under
    a new name. Jobs that need results of others are created by `wait`.
    """
    from lmi_build.jobs.find import open_ground
    from lmi_build.jobs.prepare import prepare, submission_of
    from lmi_build.jobs.service import connect
    from lmi_build.jobs.submit import submit as place_all

    settings = state.settings()
    rendered = rendered_of(state, settings, recipes, single=single)
    graph = rendered.graph
    service = connect(settings, region=graph.region)
    try:
        submission = submission_of(rendered)
        with open_ground(
            submission, service, settings, lambda line: say(state, line)
        ) as ground:
            with watching(state) as emit:
                ready = prepare(
                    rendered, shared=ground.shared, settings=settings, emit=emit
                )
            placed = place_all(ground)
            if state.output == "text":
                _tell(state, ready, placed)
            if and_wait:
                _wait(state, settings, ground, placed=placed)
            elif state.output == "json":
                data(_document(ready, placed))
    finally:
        service.close()


def _tell(state: State, ready: Ready, placed: Sequence[Placed]) -> None:
    sent = ready.folders
    say(
        state,
        f"sent {format_bytes(sent.sent_bytes)} for the jobs' channels,"
        f" {format_bytes(sent.kept_bytes)} were there",
    )
    show_placed(state, placed)
    if any(row.how == "waiting" for row in placed):
        say(state, "jobs that wait are created by `lmi-build job wait`")


def _document(ready: Ready, placed: Sequence[Placed]) -> dict[str, Any]:
    return {
        "recipe": ready.submission.recipe,
        "store": ready.submission.store,
        "region": ready.submission.region,
        "sent_bytes": ready.folders.sent_bytes,
        "kept_bytes": ready.folders.kept_bytes,
        "num_local": ready.num_local,
        "jobs": placed_document(placed),
    }


@click.command()
@takes_targets
@knows_catalog
@with_common_options
@click.pass_obj
def wait(state: State, *, targets: Sequence[str], single: bool) -> None:
    """
    Watch jobs to their end, and create those that wait for others.

    The exit status is that of the first job that failed. Stopping this command leaves
    the jobs alone.
    """
    settings = state.settings()
    with meant(state, settings, targets, single=single) as found:
        for ground, _ in found:
            _wait(state, settings, ground)


def _wait(
    state: State,
    settings: Settings,
    ground: Ground,
    *,
    placed: Sequence[Placed] = (),
) -> None:
    from lmi_build import api
    from lmi_build.execute.redact import Redactor
    from lmi_build.jobs.isolation import bring_results
    from lmi_build.jobs.prepare import store_settings
    from lmi_build.jobs.wait import Waiter
    from lmi_build.jobs.watch import Merger

    there = store_settings(settings, ground.submission)

    def bring(job: Any, ended: Any) -> None:
        store = api.open_store(there)
        try:
            bring_results(
                job, ended, shared=ground.shared, store=store, settings=settings
            )
        finally:
            store.close()

    with watching(state) as emit:
        merger = Merger(emit=emit, redactor=Redactor(settings.secret_values()))
        outcome = Waiter(ground=ground, merger=merger, bring=bring).run()
    _ended(state, ground, outcome, placed)


def _ended(
    state: State, ground: Ground, outcome: Outcome, placed: Sequence[Placed]
) -> None:
    failure = outcome.failure
    if state.output == "text":
        show_ended(state, outcome.jobs)
        say(state, f"{num_jobs(len(outcome.jobs))}, {format_seconds(outcome.seconds)}")
    elif state.output == "json" and failure is None:
        data(
            {
                "recipe": ground.submission.recipe,
                "store": ground.submission.store,
                "seconds": round(outcome.seconds, 3),
                "submitted": placed_document(placed),
                "jobs": [
                    {
                        "name": row.name or row.job.name,
                        "status": row.state.status if row.state else "cached",
                        "results": [asdict(result) for result in row.results],
                    }
                    for row in outcome.jobs
                ],
                "artifacts": artifacts_of(outcome.jobs),
            }
        )
    if failure is not None:
        raise failure
