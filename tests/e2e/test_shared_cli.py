"""Two desks and one shared store, by commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from desk import Desk
from make_tiny_model import make_tiny_model
from shared_stores import BUCKET, URL, aws, bucket_server, client, names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from faulty_s3 import FaultyS3

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
quantize: {method: none}
bounds: {max_input_len: 32, max_output_len: 8, max_batch_size: 2}
compile: {backend: onnxruntime}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    """A server that holds the bucket."""
    with bucket_server() as found:
        yield found


def make_desk(root: Path, server: FaultyS3) -> Desk:
    """A desk with the same model and recipe as every other."""
    make_tiny_model(root / "model")
    (root / "recipe.yaml").write_text(RECIPE)
    return Desk(root, {**aws(server), "LMI_BUILD_STORE": URL})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, server: FaultyS3) -> Desk:
    """A desk that built the first stage."""
    desk = make_desk(tmp_path_factory.mktemp("first"), server)
    done = desk.run("build", "recipe.yaml", "--until", "fetch")
    assert done.status == 0, done.err
    return desk


@pytest.fixture(scope="module")
def second(
    tmp_path_factory: pytest.TempPathFactory, server: FaultyS3, first: Desk
) -> Desk:
    """A desk that built nothing."""
    assert first.root.exists()
    return make_desk(tmp_path_factory.mktemp("second"), server)


def test_plan_tells_what_is_only_there(second: Desk) -> None:
    """A result of another desk is cached, and marked as remote."""
    done = second.run("plan", "recipe.yaml")

    assert done.status == 0, done.err
    fetch, *others = [line for line in done.out.splitlines() if line.startswith("= ")]
    assert "tiny/fetch" in fetch
    assert "cached (remote)" in fetch
    assert others == []


def test_why_names_the_cause_of_a_miss(second: Desk) -> None:
    """What is there, what has no record, and which fault a damaged one has."""
    there = second.run("why", "recipe.yaml", "fetch")
    absent = second.run("why", "recipe.yaml", "package")

    assert "the shared store holds it" in there.out
    assert "the shared store has no record of it" in absent.out


def test_why_names_a_refusal(second: Desk, server: FaultyS3) -> None:
    """A store that refuses is a cause like any other; the command goes on."""
    rule = server.rule(r"^GET .*/actions/", "access-denied", times=100)

    done = second.run("why", "recipe.yaml", "fetch", "--output", "jsonl")

    server.rules.remove(rule)
    assert done.status == 0
    assert done.json["status"] == "build"
    assert "AccessDenied" in done.json["miss"]


def test_cache_ls_tells_what_is_shared(first: Desk, second: Desk) -> None:
    here = first.run("cache", "ls", "--output", "json")
    nothing = second.run("cache", "ls")

    assert [row["shared"] for row in here.json] == [True]
    assert f"0 results, 1 more only in {URL}" in nothing.err


def test_verify_remote_finds_and_repairs(
    first: Desk, second: Desk, server: FaultyS3
) -> None:
    """A blob that somebody overwrote is named, removed, and sent again."""
    clean = second.run("cache", "verify", "--remote")
    victim = next(name for name in names(server) if name.startswith("blobs/"))
    s3 = client(server)
    s3.put_object(Bucket=BUCKET, Key=f"team/store/{victim}", Body=b"changed")
    s3.close()

    found = second.run("cache", "verify", "--remote")
    repaired = second.run("cache", "verify", "--remote", "--repair")
    again = first.run("build", "recipe.yaml", "--until", "fetch", "--output", "json")

    assert clean.status == 0
    assert found.status == 1
    assert f"store.corrupt: {URL}/{victim}" in found.err
    assert repaired.status == 0
    assert again.json["num_built"] == 0
    assert second.run("cache", "verify", "--remote").status == 0
    assert "cached (remote)" in second.run("plan", "recipe.yaml").out


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("s3://no-such-bucket/x", 6, "remote.no-bucket"),
        ("s3:/shared-bucket", 2, "store.bad-url"),
    ],
)
def test_bad_store_ends_before_any_work(
    second: Desk, url: str, status: int, code: str
) -> None:
    done = second.run("build", "recipe.yaml", "--until", "fetch", "--store", url)

    assert done.status == status
    assert f"error[{code}]" in done.err
    assert not list((second.root / "store").rglob("blobs/*/*"))


def test_remote_needs_a_store(second: Desk) -> None:
    done = second.run("cache", "verify", "--remote", "--store", "")

    assert done.status == 2
    assert "--store s3://bucket/prefix" in done.err
