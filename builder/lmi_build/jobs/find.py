"""From the name of a job to everything that was submitted with it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lmi_build.errors import UsageInvalid
from lmi_build.jobs import service as aws
from lmi_build.jobs.shared import open_shared, store_of_channel
from lmi_build.jobs.submission import (
    SUBMISSION_FILE,
    StageRef,
    Submission,
    SubmittedJob,
    submission_from_json,
)
from lmi_build.jobs.submit import Ground
from lmi_build.plan.saved import plan_from_json
from lmi_build.values.job import JOB_FILE, PLAN_FILE, job_from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lmi_build.jobs.service import JobState, Service
    from lmi_build.jobs.shared import SharedStore
    from lmi_build.values.settings import Settings


def find_job(service: Service, name: str) -> JobState:
    """
    A job of ours by its name.

    Raises:
        UsageInvalid: `job.unknown`: there is none, or it is not one of ours.
    """
    state = aws.find(service, name)
    if state is None:
        raise UsageInvalid(
            f"there is no job `{name}` in {service.region}",
            code="job.unknown",
            hints=("list them: `lmi-build job list`", "or set AWS_REGION"),
        )
    return state


@contextmanager
def open_ground(
    submission: Submission,
    service: Service,
    settings: Settings,
    say: Callable[[str], None],
) -> Iterator[Ground]:
    """Where a submission's jobs are, its connections given back at the end."""
    with open_shared(
        submission.store,
        settings,
        region=submission.region,
        kms_key_id=submission.kms_key_id,
    ) as shared:
        yield Ground(submission=submission, service=service, shared=shared, say=say)


def submission_of_name(service: Service, name: str, settings: Settings) -> Submission:
    """
    What a job was submitted with.

    A job that was created by other means from rendered requests stands alone; what it
    builds is in its channel.

    Raises:
        UsageInvalid: `job.unknown`.
        RemoteFailed: SageMaker or S3 refuses.
    """
    state = find_job(service, name)
    store = store_of_channel(state.channel_uri)
    if not store:
        raise UsageInvalid(
            f"{name} is not a job of lmi-build: its channel `job` is"
            f" `{state.channel_uri}`",
            code="job.unknown",
            hints=("list ours: `lmi-build job list`",),
        )
    with open_shared(store, settings, region=service.region) as shared:
        kept = shared.place.read(f"jobs/{name}/{SUBMISSION_FILE}")
        if kept is not None:
            try:
                return submission_from_json(kept.data)
            except ValueError as error:
                raise _unreadable(name, str(error)) from error
        return _alone(state, shared)


def _alone(state: JobState, shared: SharedStore) -> Submission:
    """A job without a submission, from the files of its channel."""
    base = state.channel_uri.removeprefix(f"{shared.uri}/").rstrip("/")
    told = shared.place.read(f"{base}/{JOB_FILE}")
    planned = shared.place.read(f"{base}/{PLAN_FILE}")
    if told is None or planned is None:
        raise _unreadable(state.name, "its channel lacks a file")
    try:
        document = job_from_json(told.data)
    except ValueError as error:
        raise _unreadable(state.name, str(error)) from error
    plan = plan_from_json(planned.data, f"{state.channel_uri}/{PLAN_FILE}")
    stages = [stage for stage in plan.stages if stage.key in set(document.stages)]
    built = {stage.key for stage in stages}
    needed = {k for stage in stages for k in stage.inputs.values()} - built
    job = SubmittedJob(
        name=state.name,
        kind=state.kind,
        request={},
        stages=tuple(StageRef(name=stage.name, key=stage.key) for stage in stages),
        inputs=tuple(sorted(needed)),
        instance=state.instance,
        num_hosts=state.num_hosts,
        publishes=bool(document.publish),
        isolated=not document.store,
    )
    return Submission(
        recipe=plan.recipe,
        store=shared.uri,
        region=state.arn.split(":")[3],
        jobs=(job,),
    )


def _unreadable(name: str, why: str) -> UsageInvalid:
    return UsageInvalid(
        f"what {name} was submitted with cannot be read: {why}",
        code="job.unknown",
        hints=("submit its recipe again with this version of lmi-build",),
    )
