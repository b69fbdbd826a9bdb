"""What commands of `job` share: who is meant, and how jobs look."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmi_build.cli.render import say, table
from lmi_build.digest import short
from lmi_build.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmi_build.cli.options import State
    from lmi_build.jobs.render import Rendered
    from lmi_build.jobs.service import Service
    from lmi_build.jobs.status import JobRow
    from lmi_build.jobs.submission import Submission
    from lmi_build.jobs.submit import Ground, Placed
    from lmi_build.jobs.wait import Tracked
    from lmi_build.values.settings import Settings

_RECIPES = (".yaml", ".yml")
_CENT = 0.005


def rendered_of(
    state: State, settings: Settings, recipes: Sequence[Path], *, single: bool
) -> Rendered:
    """The jobs of recipes, with a role's name made whole."""
    from lmi_build.jobs.render import render
    from lmi_build.jobs.role import role_arn
    from lmi_build.jobs.union import gather, load_many

    found = load_many(recipes, overrides=state.overrides)
    work = gather(found, settings, needs_role=True)
    role = work.spec.role
    return render(
        work,
        single=single,
        role_arn=role_arn(role, settings, region=work.region) if role else None,
        endpoint_url=settings.secrets.get("aws", {}).get("AWS_ENDPOINT_URL_S3"),
    )


@contextmanager
def meant(
    state: State, settings: Settings, targets: Sequence[str], *, single: bool = False
) -> Iterator[list[tuple[Ground, list[str]]]]:
    """
    What names and recipes on a command line mean.

    Yields:
        Grounds, each with the names that led to it; none of them where recipes did.
    """
    from contextlib import ExitStack

    from lmi_build.jobs.find import open_ground, submission_of_name
    from lmi_build.jobs.prepare import submission_of
    from lmi_build.jobs.service import connect

    files = [Path(word) for word in targets if word.endswith(_RECIPES)]
    names = [word for word in targets if not word.endswith(_RECIPES)]
    with ExitStack() as stack:
        found: list[tuple[Ground, list[str]]] = []

        def add(submission: Submission, service: Service, led: list[str]) -> None:
            ground = open_ground(submission, service, settings, _sayer(state))
            found.append((stack.enter_context(ground), led))

        if files:
            rendered = rendered_of(state, settings, files, single=single)
            submission = submission_of(rendered)
            service = connect(settings, region=submission.region)
            stack.callback(service.close)
            add(submission, service, [])
        if names:
            service = connect(settings)
            stack.callback(service.close)
            known: dict[bytes, tuple[Submission, list[str]]] = {}
            for name in names:
                one = submission_of_name(service, name, settings)
                _, led = known.setdefault(repr(one).encode(), (one, []))
                led.append(name)
            for one, led in known.values():
                add(one, service, led)
        yield found


def _sayer(state: State) -> Any:
    return lambda line: say(state, line)


def num_jobs(count: int) -> str:
    """`1 job`, `2 jobs`."""
    return "1 job" if count == 1 else f"{count} jobs"


def show_placed(state: State, placed: Sequence[Placed]) -> None:
    """What became of each job that was submitted."""
    for row in placed:
        note = f" ({row.note})" if row.note else ""
        say(state, f"{row.how:<9} {row.name}{note}")
        if row.url:
            click.echo(row.url)


def placed_document(placed: Sequence[Placed]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "name": row.name,
            "kind": row.job.kind,
            "instance": row.job.instance,
            "num_hosts": row.job.num_hosts,
            "how": row.how,
            "note": row.note,
            "url": row.url,
            "after": list(row.job.after),
            "stages": [asdict(stage) for stage in row.job.stages],
        }
        for row in placed
    ]


def show_ended(state: State, rows: Sequence[Tracked]) -> None:
    """Stages and artifacts of jobs that have ended."""
    stages: dict[Any, list[str]] = {}
    for row in rows:
        for result in row.results:
            for stage in result.stages:
                known = stages.get(stage["key"])
                if known is None or (known[2] == "cached" and not stage["cached"]):
                    stages[stage["key"]] = _stage_cells(row.name, stage)
    if stages:
        head = ["stage", "job", "", "time", "bytes", "key"]
        say(state, "\n" + table(head, list(stages.values())))
    for artifact in artifacts_of(rows):
        where = ":" if artifact["uri"] else ": not published; `build --store` brings it"
        digest = short(str(artifact["manifest_digest"]))
        say(state, f"artifact {artifact['name']}, manifest {digest}{where}")
        if artifact["uri"]:
            click.echo(str(artifact["uri"]))


def _stage_cells(job: str, stage: Any) -> list[str]:
    return [
        str(stage["name"]),
        job,
        "cached" if stage["cached"] else "built",
        format_seconds(float(stage["seconds"])),
        format_bytes(int(stage["out_bytes"])),
        short(str(stage["key"])),
    ]


def artifacts_of(rows: Sequence[Tracked]) -> list[Any]:
    """Artifacts that hosts found complete, each once, published ones first."""
    found: dict[Any, Any] = {}
    every = [a for row in rows for result in row.results for a in result.artifacts]
    for artifact in sorted(every, key=lambda a: not a["uri"]):
        found.setdefault(artifact["name"], artifact)
    return list(found.values())


def jobs_table(rows: Sequence[JobRow]) -> str:
    """Jobs, one a line."""
    head = ["job", "kind", "state", "instance", "age", "ran", "cost"]
    return table(head, [_cells(row) for row in rows])


def _cells(row: JobRow) -> list[str]:
    state = f"{row.status} ({row.detail})" if _says_more(row) else row.status
    hosts = f"{row.num_hosts} x {row.instance}" if row.num_hosts > 1 else row.instance
    return [
        row.name,
        row.kind,
        state,
        hosts or "-",
        _seconds(row.age_seconds),
        _seconds(row.run_seconds),
        _dollars(row.usd),
    ]


def _says_more(row: JobRow) -> bool:
    return bool(row.detail) and row.detail != row.status


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else format_seconds(max(0.0, seconds))


def _dollars(usd: float | None) -> str:
    if usd is None:
        return "-"
    return "< 0.01 USD" if usd < _CENT else f"{usd:.2f} USD"
