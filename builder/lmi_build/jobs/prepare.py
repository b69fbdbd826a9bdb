"""From rendered jobs to what can be submitted: folders sent, local sources built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build import api
from lmi_build.events import ignore
from lmi_build.jobs.submission import StageRef, Submission, SubmittedJob
from lmi_build.jobs.upload import Sent, upload_folder

if TYPE_CHECKING:
    from lmi_build.events import Emit
    from lmi_build.jobs.render import Rendered
    from lmi_build.jobs.shared import SharedStore
    from lmi_build.values.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """
    What became of a preparation.

    Args:
        submission: The jobs.
        folders: What their channels cost.
        num_local: Stages of local sources that were looked after.
    """

    submission: Submission
    folders: Sent
    num_local: int


def submission_of(rendered: Rendered) -> Submission:
    """The jobs as they are submitted and watched."""
    graph = rendered.graph
    keys = graph.stages_by_key()
    jobs = tuple(
        SubmittedJob(
            name=job.name,
            kind=job.kind,
            request=request.document,
            stages=tuple(StageRef(name=keys[k].name, key=k) for k in job.stages),
            inputs=job.needs,
            after=job.after,
            instance=job.instance,
            num_hosts=job.num_hosts,
            publishes=bool(graph.publishes(job)),
            isolated=graph.spec.network_isolation,
        )
        for job, request in zip(graph.jobs, rendered.requests, strict=True)
    )
    return Submission(
        recipe=graph.plan.recipe,
        store=graph.store,
        region=graph.region,
        jobs=jobs,
        max_jobs=graph.spec.max_jobs,
        kms_key_id=graph.spec.output_kms_key_id,
    )


def store_settings(settings: Settings, submission: Submission) -> Settings:
    """The user's environment, with the jobs' store and its key in place."""
    return replace(
        settings,
        store=submission.store,
        store_kms_key_id=submission.kms_key_id or settings.store_kms_key_id,
    )


def prepare(
    rendered: Rendered,
    *,
    shared: SharedStore,
    settings: Settings,
    emit: Emit = ignore,
) -> Ready:
    """
    Send what jobs read, each byte once.

    Local sources are stages like all others: they are built here, and their results
    are shared, so that an unchanged source sends nothing.

    Args:
        rendered: The jobs.
        shared: Their store.
        settings: The user's environment; its store is the jobs'.
        emit: Watches the local stages.

    Raises:
        LmiBuildError: A local source cannot be read, or S3 refuses.
    """
    graph = rendered.graph
    local = set(graph.local)
    if local:
        stages = tuple(stage for stage in graph.plan.stages if stage.key in local)
        plan = replace(graph.plan, stages=stages, artifacts=())
        there = store_settings(settings, submission_of(rendered))
        api.build(plan, there, emit=emit, thorough=True)
    total = Sent()
    for channel in {r.channel_key: r.channel for r in rendered.requests}.values():
        total += upload_folder(shared.place, channel)
    if graph.wheels is not None:
        total += upload_folder(shared.place, graph.wheels.files)
    return Ready(
        submission=submission_of(rendered), folders=total, num_local=len(local)
    )
