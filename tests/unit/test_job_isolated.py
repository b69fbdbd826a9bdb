"""The store of a job without network: in by a channel, out by an output."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from lmi_build.errors import StoreCorrupt, UsageInvalid
from lmi_build.sagemaker.isolated import give_out, refuse_many_hosts, take_in
from lmi_build.store.store import Store
from lmi_build.values.result import Measure
from lmi_build.values.stage import Stage

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.values.result import StageResult


def stage(name: str) -> Stage:
    """A stage that differs from others by its name."""
    return Stage(
        name=name,
        kind="fetch",
        params={"name": name},
        inputs={},
        tools={},
        platform="any",
        salt=0,
        entry="x:y",
    )


def make(store: Store, name: str, files: dict[str, bytes]) -> StageResult:
    """A result in a store."""
    made = stage(name)
    staged = store.root / f"staged-{name}"
    for path, data in files.items():
        (staged / path).parent.mkdir(parents=True, exist_ok=True)
        (staged / path).write_bytes(data)
    return store.commit(
        made.key,
        staged,
        key_document=made.key_document(),
        stage="fetch",
        measure=Measure(seconds=1, cpu_seconds=1, peak_rss_bytes=1),
    )


@pytest.fixture
def channel(tmp_path: Path) -> Path:
    """A channel with one result of two files."""
    store = Store(tmp_path / "far")
    make(store, "a", {"x": b"shared", "deep/y": b"of a alone"})
    folder = tmp_path / "channel"
    for room in ("actions", "blobs"):
        shutil.copytree(store.root / room, folder / room)
    return folder


def files(folder: Path) -> set[str]:
    """Names of all files below a folder."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_came_in_is_found_and_only_news_go_out(
    channel: Path, tmp_path: Path
) -> None:
    """A result that shares a file with one that came adds what it has alone."""
    store = Store(tmp_path / "here")

    came = take_in(channel, store)
    found = store.lookup(stage("a").key)
    made = make(store, "b", {"x": b"shared", "z": b"new"})
    give_out([stage("a"), stage("b"), stage("c")], store, tmp_path / "out", came)

    assert found is not None
    assert [entry.path for entry in found.entries] == ["deep/y", "x"]
    new = next(e.digest for e in made.entries if e.path == "z")
    expected = {store.blob_path(new), store.record_path(stage("b").key)}
    assert files(tmp_path / "out") == {
        path.relative_to(store.root).as_posix() for path in expected
    }


def test_taking_in_twice_changes_nothing(channel: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "here")

    first = take_in(channel, store)
    second = take_in(channel, store)

    assert first == second
    assert len(files(store.root / "blobs")) == 2


@pytest.mark.parametrize("room", ["blobs", "actions"])
def test_damage_on_the_way_in_is_named(
    channel: Path, tmp_path: Path, room: str
) -> None:
    """A flipped byte in a file or a record ends the job before any work."""
    path = next(p for p in (channel / room).rglob("*") if p.is_file())
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])

    with pytest.raises(StoreCorrupt) as caught:
        take_in(channel, Store(tmp_path / "here"))

    assert caught.value.code == "job.damaged-store"
    assert path.name in caught.value.message


def test_a_file_that_did_not_come_is_named(channel: Path, tmp_path: Path) -> None:
    next(p for p in (channel / "blobs").rglob("*") if p.is_file()).unlink()

    with pytest.raises(StoreCorrupt, match="it is missing"):
        take_in(channel, Store(tmp_path / "here"))


def test_a_channel_that_is_not_there_brings_nothing(tmp_path: Path) -> None:
    assert take_in(tmp_path / "nothing", Store(tmp_path / "here")) == set()


def test_hosts_without_network_are_refused() -> None:
    refuse_many_hosts(["algo-1"])

    with pytest.raises(UsageInvalid, match="2 hosts"):
        refuse_many_hosts(["algo-1", "algo-2"])
