"""Machines that share a store see each other's results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmi_build.digest import digest_bytes
from lmi_build.store.gc import verify_store
from lmi_build.store.store import Store
from shared_stores import bucket_server, build, host, objects, opened
from stage_plans import chain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from faulty_s3 import FaultyS3


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    """A server that holds the bucket."""
    with bucket_server() as found:
        yield found


def test_second_machine_builds_nothing(tmp_path: Path, server: FaultyS3) -> None:
    """What one machine built, another finds, byte for byte."""
    counter = tmp_path / "count"
    item = chain(counter=str(counter))

    first = build(item, host(tmp_path / "one", server))
    second = build(item, host(tmp_path / "two", server))

    assert first.num_built == 3
    assert second.num_built == 0
    assert [r.result.digest for r in first.rows] == [
        r.result.digest for r in second.rows
    ]
    assert len(counter.read_text().splitlines()) == 3


def test_layout_is_the_local_one(tmp_path: Path, server: FaultyS3) -> None:
    """Records are the same bytes, blobs have the names of their content."""
    given = host(tmp_path, server)
    build(chain(), given)

    found = objects(server)

    local = {
        path.relative_to(given.cache_dir).as_posix(): path.read_bytes()
        for room in ("blobs", "actions")
        for path in (given.cache_dir / room).rglob("*")
        if path.is_file()
    }
    rooms = ("blobs/", "actions/")
    assert {k: v for k, v in found.items() if k.startswith(rooms)} == local
    for key, data in found.items():
        if key.startswith("blobs/"):
            assert digest_bytes(data) == f"sha256:{key.rpartition('/')[2]}"


def test_only_what_is_needed_is_fetched(tmp_path: Path, server: FaultyS3) -> None:
    """A cached build over an empty folder fetches no intermediate result."""
    item = chain()
    build(item, host(tmp_path / "one", server))
    server.forget()

    second = host(tmp_path / "two", server)
    build(item, second)

    assert server.count(r"^GET .*/actions/") == 3
    assert server.count(r"^GET .*/blobs/") == 0
    assert verify_store(Store(second.cache_dir)) == []


def test_fully_cached_build_asks_once_a_stage(tmp_path: Path, server: FaultyS3) -> None:
    """With everything here and there, a build is one request for each stage."""
    given = host(tmp_path, server)
    item = chain()
    build(item, given)
    server.forget()

    build(item, given)

    assert len(server.log) == 3


def test_results_made_alone_are_shared_later(tmp_path: Path, server: FaultyS3) -> None:
    """What was built before there was a shared store is sent, not built again."""
    from dataclasses import replace

    item = chain()
    alone = replace(host(tmp_path / "one", server), store="")
    from lmi_build.events import ignore
    from lmi_build.execute.executor import execute

    execute(item, store=Store(alone.cache_dir), settings=alone, emit=ignore)

    again = build(item, host(tmp_path / "one", server))
    other = build(item, host(tmp_path / "two", server))

    assert (again.num_built, other.num_built) == (0, 0)


def test_next_stage_fetches_its_inputs(tmp_path: Path, server: FaultyS3) -> None:
    """A machine with nothing goes on from what another one made."""
    item = chain()
    first = host(tmp_path / "one", server)
    with opened(first) as store:
        from lmi_build.events import ignore
        from lmi_build.execute.executor import execute

        execute(item, store=store, settings=first, emit=ignore, until="quantize")

    second = host(tmp_path / "two", server)
    result = build(item, second)

    assert [row.cached for row in result.rows] == [True, True, False]
    entry = result.artifacts["sample"]["compile"].entries[0]
    assert Store(second.cache_dir).blob_path(entry.digest).read_bytes() == b"abc"
    assert verify_store(Store(second.cache_dir)) == []
