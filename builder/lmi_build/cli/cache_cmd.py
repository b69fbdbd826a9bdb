"""`cache`: the store, looked at and emptied."""

from __future__ import annotations

import re
import time
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lmi_build import api
from lmi_build.cli.options import State, with_common_options
from lmi_build.cli.render import data, say, table
from lmi_build.digest import short
from lmi_build.errors import StoreCorrupt, UsageInvalid
from lmi_build.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from lmi_build.store.store import Store

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
    """
    List the results, least recently used first.

    With a shared store, each says whether it is there as well, and those that are only
    there are counted.
    """
    from lmi_build.store.gc import list_records

    with closing(api.open_store(state.settings())) as store:
        rows = list_records(store)
        there = _keys_there(store)
    if state.output != "text":
        data([{**asdict(row), **_is_there(row.key, there)} for row in rows])
        return
    now = time.time()
    lines = [
        [
            short(row.key),
            row.stage,
            format_bytes(row.size),
            row.created,
            f"{(now - row.last_used) / 3600:.1f} h ago",
            *(["-" if row.key not in there else "shared"] if there is not None else ()),
        ]
        for row in rows
    ]
    head = ["key", "stage", "bytes", "created", "used"]
    if lines:
        click.echo(table([*head, *(["there"] if there is not None else ())], lines))
    more = ""
    if there is not None:
        only = len(there - {row.key for row in rows})
        more = f", {only} more only in {state.settings().store}"
    say(state, f"{len(rows)} results{more}")


def _keys_there(store: Store) -> set[str] | None:
    """Keys of the shared store, or None where there is no such store."""
    from lmi_build.store.far_check import list_keys
    from lmi_build.store.tiered import TieredStore

    return list_keys(store.far) if isinstance(store, TieredStore) else None


def _is_there(key: str, there: set[str] | None) -> dict[str, bool]:
    return {} if there is None else {"shared": key in there}


@cache.command()
@click.option("--repair", is_flag=True, help="Remove what is wrong; builds remake it.")
@click.option("--remote", is_flag=True, help="The shared store, not the local one.")
@with_common_options
@click.pass_obj
def verify(state: State, *, repair: bool, remote: bool) -> int:
    """Read every byte of the store and name everything that is wrong."""
    from lmi_build.store import gc

    if remote:
        return _verify_remote(state, repair=repair)
    store = api.open_store(state.settings())
    faults = gc.verify_store(store)
    if state.output != "text":
        data([{**asdict(fault), "path": str(fault.path)} for fault in faults])
    if not faults:
        say(state, "every file is what its name says")
        return 0
    for fault in faults:
        say(state, f"{fault.code}: {fault.path}: {fault.message}")
    if repair:
        gc.repair(store, faults)
        say(state, f"removed {len(faults)} bad files; the next build makes them again")
        return 0
    if state.output != "text":
        # The faults are the document; there is no second one.
        return StoreCorrupt.exit_code
    raise StoreCorrupt(
        f"{len(faults)} files of the store are not what they should be",
        code="store.corrupt",
        hints=("run `lmi-build cache verify --repair`, then build again",),
    )


def _verify_remote(state: State, *, repair: bool) -> int:
    from lmi_build.store import far_check
    from lmi_build.store.tiered import TieredStore

    with closing(api.open_store(state.settings())) as store:
        if not isinstance(store, TieredStore):
            raise UsageInvalid(
                "`--remote` needs a shared store",
                code="usage.invalid",
                hints=("add `--store s3://bucket/prefix`",),
            )
        faults = far_check.verify_far(store.far)
        if state.output != "text":
            data([asdict(fault) for fault in faults])
        for fault in faults:
            where = store.far.remote.uri(fault.object_key)
            say(state, f"{fault.code}: {where}: {fault.message}")
        if not faults:
            say(state, "every object is what its name says")
            return 0
        if repair:
            far_check.repair_far(store.far, faults)
            say(state, f"removed {len(faults)} faults; builds make the results again")
            return 0
    if state.output != "text":
        return StoreCorrupt.exit_code
    raise StoreCorrupt(
        f"{len(faults)} objects of the shared store are not what they should be",
        code="store.corrupt",
        hints=("run `lmi-build cache verify --remote --repair`, then build again",),
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
    """
    Remove results and the files only they needed, from this machine.

    A shared store is left alone: rules of the bucket's life cycle empty it.
    """
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
