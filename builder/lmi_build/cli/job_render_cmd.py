"""`job render`: the requests of the jobs, written and checked, nothing sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmi_build.cli.catalog_option import knows_catalog
from lmi_build.cli.job_options import in_one_job, takes_recipes
from lmi_build.cli.options import State, with_common_options, with_lock_options
from lmi_build.cli.render import data, say, style
from lmi_build.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.jobs.graph import JobGraph, PlannedJob
    from lmi_build.jobs.optimization import Alternative
    from lmi_build.jobs.render import Rendered
    from lmi_build.jobs.union import Work


@click.command()
@takes_recipes
@in_one_job
@click.option("--policy", is_flag=True, help="Also IAM policies of the least rights.")
@click.option(
    "--pipeline", is_flag=True, help="Also a definition for SageMaker Pipelines."
)
@click.option(
    "--optimization-job",
    "optimization",
    is_flag=True,
    help="Also inference optimization jobs, where LMI's tools do what the recipe says.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the requests and the files they need below this folder.",
)
@knows_catalog
@with_lock_options
@with_common_options
@click.pass_obj
def render(
    state: State,
    *,
    recipes: Sequence[Path],
    single: bool,
    policy: bool,
    pipeline: bool,
    optimization: bool,
    out: Path | None,
) -> None:
    """
    Write the requests of the jobs and check them; nothing is sent.

    Several recipes become one graph, in which a stage that they share stands once.
    """
    from lmi_build.jobs.files import render_files, write_files
    from lmi_build.jobs.render import render as make
    from lmi_build.jobs.union import gather, load_many

    settings = state.settings()
    found = load_many(recipes, overrides=state.overrides)
    work = gather(found, settings, needs_role=True)
    endpoint = settings.secrets.get("aws", {}).get("AWS_ENDPOINT_URL_S3")
    rendered = make(work, single=single, endpoint_url=endpoint)
    extra = _extra(rendered, work, policy=policy, optimization=optimization)
    if out is not None:
        files = render_files(rendered, pipeline=pipeline, **extra)
        write_files(files, out)
        say(state, f"wrote {len(files)} files below {out}")
    if state.output != "text":
        data(_document(rendered, pipeline=pipeline, **extra))
        return
    click.echo(_text(state, rendered.graph))
    for line in _alternative_lines(extra["alternatives"]):
        click.echo(line)
    if out is None and (policy or pipeline or optimization):
        say(
            state,
            "note: `--out DIR` writes what was asked for, `--output json` prints it",
        )


def _extra(
    rendered: Rendered, work: Work, *, policy: bool, optimization: bool
) -> dict[str, Any]:
    """Policies and optimization jobs, as far as they are wanted."""
    from lmi_build.jobs.api_check import refuse
    from lmi_build.jobs.optimization import OPERATION, optimization_jobs
    from lmi_build.jobs.policy import policies
    from lmi_build.jobs.request import role_of

    role = role_of(rendered.graph)
    alternatives = optimization_jobs(work, role) if optimization else ()
    for each in alternatives:
        if each.document is not None:
            refuse(OPERATION, each.document)
    return {
        "policies": policies(rendered.graph, work, role) if policy else None,
        "alternatives": alternatives,
    }


def _document(
    rendered: Rendered,
    *,
    policies: dict[str, Any] | None,
    alternatives: Sequence[Alternative],
    pipeline: bool,
) -> dict[str, Any]:
    from dataclasses import asdict

    from lmi_build.jobs.files import graph_document
    from lmi_build.jobs.pipeline import pipeline_definition

    document = {
        **graph_document(rendered.graph),
        "requests": [
            {
                "job": request.job,
                "operation": request.operation,
                "document": request.document,
                "channel": f"{rendered.graph.store}/{request.channel_key}",
                "files": {name: len(body) for name, body in request.channel.items()},
            }
            for request in rendered.requests
        ],
    }
    if policies is not None:
        document["policies"] = policies
    if pipeline:
        document["pipeline"] = pipeline_definition(rendered)
    if alternatives:
        document["optimization_jobs"] = [asdict(each) for each in alternatives]
    return document


def _text(state: State, graph: JobGraph) -> str:
    """The graph for people: one block for each job."""
    names = {key: stage.name for key, stage in graph.stages_by_key().items()}
    blocks = []
    if graph.local:
        local = ", ".join(names[key] for key in graph.local)
        blocks.append(f"{style(state, 'here', bold=True)}: {local}")
    blocks += [_block(state, job, names) for job in graph.jobs]
    jobs = "job" if len(graph.jobs) == 1 else "jobs"
    blocks.append(
        f"{len(graph.jobs)} {jobs}, {len(graph.plan.stages)} stages,"
        f" store {graph.store}, region {graph.region}"
    )
    return "\n\n".join(blocks)


_MOST_NAMES = 8


def _block(state: State, job: PlannedJob, names: dict[Any, str]) -> str:
    stages = [names[key] for key in job.stages]
    shown = ", ".join(stages[:_MOST_NAMES])
    more = len(stages) - _MOST_NAMES
    hosts = f"{job.num_hosts} x " if job.num_hosts > 1 else ""
    limit = format_seconds(job.max_runtime_seconds)
    name = style(state, job.name, bold=True)
    lines = [
        f"{name}: {job.kind} job on {hosts}{job.instance}, at most {limit}",
        f"  image   {job.image}",
        f"  stages  {shown}{f' and {more} more' if more > 0 else ''}",
    ]
    if job.after:
        lines.append(f"  after   {', '.join(job.after)}")
    lines += [f"  why     {reason}" for reason in job.reasons]
    mark = style(state, "warning", fg="yellow")
    lines += [f"  {mark} {text}" for text in job.warnings]
    return "\n".join(lines)


def _alternative_lines(alternatives: Sequence[Alternative]) -> list[str]:
    lines = []
    for each in alternatives:
        word = "none" if each.document is None else each.document["OptimizationJobName"]
        lines.append(f"\n{each.artifact}: optimization job: {word}")
        lines += [f"  why not  {reason}" for reason in each.reasons]
        lines += [f"  differs  {line}" for line in each.differences]
    return lines
