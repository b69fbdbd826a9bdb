"""How jobs stand, from SageMaker and from the store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.prices import DEFAULT_REGION, find_price, price_tables
from lmi_build.jobs import service as aws
from lmi_build.jobs.console import console_url, logs_url
from lmi_build.jobs.shared import store_of_channel
from lmi_build.jobs.submit import latest
from lmi_build.values.job import KINDS

if TYPE_CHECKING:
    from lmi_build.jobs.service import JobState, Service
    from lmi_build.jobs.submission import SubmittedJob
    from lmi_build.jobs.submit import Ground

NOT_CREATED = "not created"
BUILT, BUILDING, OPEN = "built", "building", "open"
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRow:
    """
    One job at one moment.

    Args:
        name: Of its latest attempt.
        kind: `processing` or `training`.
        status: SageMaker's word, or that it is not created yet.
        detail: More of it.
        cause: Why it ended badly, or its last word.
        instance: Type of its hosts.
        num_hosts: How many.
        age_seconds: Since it was asked for.
        run_seconds: That its hosts ran.
        usd: What they cost so far, on demand; None where no table has the price.
        price_source: Where the price was read, and when.
        url: Its page in the console.
        logs_url: Its log streams there.
        store: The shared store that it works for.
        after: Names of jobs it waits for.
        stages: Rows of name, key and state.
    """

    name: str
    kind: str
    status: str
    detail: str = ""
    cause: str = ""
    instance: str = ""
    num_hosts: int = 1
    age_seconds: float | None = None
    run_seconds: float | None = None
    usd: float | None = None
    price_source: str = ""
    url: str = ""
    logs_url: str = ""
    store: str = ""
    after: tuple[str, ...] = ()
    stages: tuple[dict[str, Any], ...] = ()


def status(ground: Ground) -> tuple[JobRow, ...]:
    """Every job of a submission, with its stages' states from the store."""
    return tuple(_row(ground, job) for job in ground.submission.jobs)


def _row(ground: Ground, job: SubmittedJob) -> JobRow:
    name, state = latest(ground.service, job)
    missing = set(ground.shared.missing(job.keys))
    runs = state is not None and not state.has_ended
    stages = tuple(
        {
            "name": stage.name,
            "key": stage.key,
            "state": (BUILDING if runs else OPEN) if stage.key in missing else BUILT,
        }
        for stage in job.stages
    )
    if state is None:
        return JobRow(
            name=name,
            kind=job.kind,
            status=NOT_CREATED if missing else "not needed",
            instance=job.instance,
            num_hosts=job.num_hosts,
            store=ground.submission.store,
            after=job.after,
            stages=stages,
        )
    return row_of(ground.service, state, after=job.after, stages=stages)


def row_of(
    service: Service,
    state: JobState,
    *,
    after: tuple[str, ...] = (),
    stages: tuple[dict[str, Any], ...] = (),
) -> JobRow:
    """What can be said of a job by its description alone."""
    now = datetime.now(tz=timezone.utc)
    run_seconds = None
    if state.started is not None:
        run_seconds = ((state.ended or now) - state.started).total_seconds()
    usd, source = cost_so_far(state, service.region, run_seconds)
    age = None if state.created is None else (now - state.created).total_seconds()
    return JobRow(
        name=state.name,
        kind=state.kind,
        status=state.status,
        detail=state.detail,
        cause=state.cause,
        instance=state.instance,
        num_hosts=state.num_hosts,
        age_seconds=age,
        run_seconds=run_seconds,
        usd=usd,
        price_source=source,
        url=console_url(state.kind, state.name, service.region),
        logs_url=logs_url(state.kind, state.name, service.region),
        store=store_of_channel(state.channel_uri),
        after=after,
        stages=stages,
    )


def cost_so_far(
    state: JobState, region: str, run_seconds: float | None
) -> tuple[float | None, str]:
    """Hours of hosts times the catalogue's price at most, and where that was read."""
    if run_seconds is None or not state.instance:
        return None, ""
    # Where no table has the region, the usual one's price is nearer than none.
    prices = (
        find_price(price_tables(), state.instance, region=place, job=state.kind)
        for place in (region, DEFAULT_REGION)
    )
    price = next((found for found in prices if found is not None), None)
    if price is None:
        return None, ""
    hours = run_seconds / _SECONDS_PER_HOUR * state.num_hosts
    source = f"{price.job} in {price.region}: {price.source}, {price.checked}"
    if price.derived:
        source = (
            f"{price.job} in {price.region}, at most: {price.words}; {price.source}"
        )
    return hours * price.usd_per_hour.high, source


def list_jobs(
    service: Service, *, name_contains: str, store: str, limit: int
) -> tuple[JobRow, ...]:
    """
    Our jobs, newest first: those whose channel lies in a shared store.

    Args:
        service: Where.
        name_contains: Part of their names; empty for all.
        store: Only those of this store; empty for all.
        limit: Of each kind, how many are looked at.
    """
    found = []
    for kind in KINDS:
        for brief in aws.list_summaries(
            service, kind, name_contains=name_contains, limit=limit
        ):
            # A summary does not say what a job reads.
            state = aws.describe(service, kind, brief.name)
            theirs = store_of_channel(state.channel_uri) if state else ""
            if state is not None and theirs and store in {"", theirs}:
                found.append(row_of(service, state))
    return tuple(sorted(found, key=lambda row: row.age_seconds or 0.0))
