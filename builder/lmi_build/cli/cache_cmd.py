"""`cache`: the store, looked at and emptied."""

from __future__ import annotations

import re
import time
from dataclasses import asdict

import click

from lmi_build import api
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, say, table
from lmi_build.digest import short
from lmi_build.errors import StoreCorrupt, UsageInvalid
from lmi_build.units import format_bytes, parse_bytes

_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@click.group()
@with_common_options
def cache() -> None:
    """List, verify, prune or locate the store."""


@cache.command()
@with_common_options
@click.pass_obj
def path(state: State) -> None:
    """Print where the store lies."""
    click.echo(str(state.settings().cache_dir))


@cache.command()
@with_common_options
@click.pass_obj
def ls(state: State) -> None:
    """List the results, least recently used first."""
    from lmi_build.store.gc import list_records

    rows = list_records(api.open_store(state.settings()))
    if state.output != "text":
        data([asdict(row) for row in rows])
        return
    now = time.time()
    lines = [
        [
            short(row.key),
            row.stage,
            format_bytes(row.size),
            row.created,
            f"{(now - row.last_used) / 3600:.1f} h ago",
        ]
        for row in rows
    ]
    if lines:
        click.echo(table(["key", "stage", "bytes", "created", "used"], lines))
    say(state, f"{len(rows)} results")


@cache.command()
@click.option("--repair", is_flag=True, help="Remove what is wrong; builds remake it.")
@with_common_options
@click.pass_obj
def verify(state: State, repair: bool) -> None:  # noqa: FBT001 - click gives it
    """Read every byte of the store and name everything that is wrong."""
    from lmi_build.store import gc

    store = api.open_store(state.settings())
    faults = gc.verify_store(store)
    if state.output != "text":
        data([{**asdict(fault), "path": str(fault.path)} for fault in faults])
    if not faults:
        say(state, "every file is what its name says")
        return
    for fault in faults:
        say(state, f"{fault.code}: {fault.path}: {fault.message}")
    if repair:
        gc.repair(store, faults)
        say(state, f"removed {len(faults)} bad files; the next build makes them again")
        return
    raise StoreCorrupt(
        f"{len(faults)} files of the store are not what they should be",
        code="store.corrupt",
        hints=("run `lmi-build cache verify --repair`, then build again",),
    )


@cache.command()
@click.option("--older-than", metavar="AGE", help="Not used for this long: 30d, 12h.")
@click.option("--max-size", metavar="SIZE", help="Leave at most this much: 50GiB.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@click.option("--dry-run", is_flag=True, help="Say what would go; touch nothing.")
@with_common_options
@click.pass_obj
def prune(
    state: State,
    *,
    older_than: str | None,
    max_size: str | None,
    everything: bool,
    dry_run: bool,
) -> None:
    """Remove results and the files only they needed."""
    from lmi_build.store import gc

    if not (older_than or max_size or everything):
        raise UsageInvalid(
            "say what may go: `--older-than`, `--max-size` or `--all`",
            code="usage.invalid",
            hints=("`lmi-build cache prune --older-than 30d --dry-run`",),
        )
    try:
        limit = parse_bytes(max_size) if max_size else None
        age = 0.0 if everything else _age(older_than) if older_than else None
    except ValueError as error:
        raise UsageInvalid(
            str(error), code="usage.invalid", hints=("write `50GiB`, `30d` or `12h`",)
        ) from error
    pruned = gc.prune(
        api.open_store(state.settings()),
        older_than_seconds=age,
        max_bytes=limit,
        dry_run=dry_run,
    )
    if state.output != "text":
        data({**asdict(pruned), "dry_run": dry_run})
    verb = "would remove" if dry_run else "removed"
    say(
        state,
        f"{verb} {len(pruned.keys)} results and {pruned.num_blobs} files,"
        f" {format_bytes(pruned.freed_bytes)}",
    )


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise ValueError(f"`{text}` is not an age; write a number and s, m, h, d or w")
    return float(match.group(1)) * _AGES[match.group(2)]
