"""One suite of laws for every store: the local one, and one with a bucket behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmi_build.digest import digest_file
from lmi_build.errors import StageFailed
from lmi_build.store.gc import list_records, prune, verify_store
from lmi_build.store.store import Store
from lmi_build.store.tiered import TieredStore
from memory_remote import Bucket, MemoryRemote
from shared_stores import (
    MEASURE,
    bucket_server,
    commit,
    host,
    key_document,
    key_of,
    opened,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each kind of store."""
    root = tmp_path / "store"
    if request.param == "local":
        yield Store(root)
    elif request.param == "memory":
        yield TieredStore(root, lambda: MemoryRemote(Bucket()))
    else:
        with bucket_server() as server, opened(host(tmp_path, server)) as found:
            yield found


def test_nothing_is_found_in_a_new_store(store: Store) -> None:
    assert store.lookup(key_of()) is None
    assert store.lookup_all([key_of(), key_of("b")]) == {
        key_of(): None,
        key_of("b"): None,
    }


def test_what_was_committed_is_found_whole(store: Store, tmp_path: Path) -> None:
    """Key, digest, names, sizes and bytes are those that were staged."""
    result = commit(store, tmp_path, data=b"x" * 1000)

    assert store.lookup(key_of()) == result
    assert store.lookup_all([key_of()]) == {key_of(): result}
    assert [(e.path, e.size) for e in result.entries] == [
        ("note.txt", 3),
        ("out.bin", 1000),
    ]
    for entry in result.entries:
        assert digest_file(store.blob_path(entry.digest)) == entry.digest
    assert verify_store(store) == []


def test_result_is_laid_out(store: Store, tmp_path: Path) -> None:
    result = commit(store, tmp_path)

    store.materialize(result, tmp_path / "out")

    found = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert found == {"note.txt": b"out", "out.bin": b"abc"}


def test_sharing_again_sends_nothing(store: Store, tmp_path: Path) -> None:
    result = commit(store, tmp_path)

    assert store.share(result) == 0
    assert store.share(result, thorough=True) == 0


def test_bringing_what_is_here_does_nothing(store: Store, tmp_path: Path) -> None:
    result = commit(store, tmp_path)

    store.bring([result])

    assert store.is_here(result)


def test_equal_contents_are_kept_once(store: Store, tmp_path: Path) -> None:
    first = commit(store, tmp_path, "a", b"same")
    second = commit(store, tmp_path, "b", b"same")

    blobs = [p for p in (store.root / "blobs").rglob("*") if p.is_file()]
    assert len(blobs) == 3
    assert first.digest != second.digest


def test_key_is_held_by_one_at_a_time(store: Store) -> None:
    """While a key is built, trying it yields nothing; another key is free."""
    with store.building(key_of(), lambda: None) as scratch:
        assert list(scratch.iterdir()) == []
        with store.try_building(key_of()) as second:
            assert second is None
        with store.try_building(key_of("b")) as other:
            assert other is not None
            assert other != scratch

    with store.try_building(key_of()) as again:
        assert again is not None


def test_failure_is_told_in_its_run(store: Store) -> None:
    """What failed in a run is not yielded again in it."""
    error = {"kind": "StageFailed", "code": "a.b", "message": "m", "hints": []}
    with store.try_building(key_of(), run="r1") as scratch:
        assert scratch is not None
        store.fail(key_of(), run="r1", error=error)

    with store.try_building(key_of(), run="r1") as again:
        assert again is None
    assert store.failure(key_of()) == error
    with store.try_building(key_of(), run="r2") as later:
        assert later is not None


def test_state_outlives_an_attempt_and_not_a_commit(
    store: Store, tmp_path: Path
) -> None:
    with store.building(key_of(), lambda: None):
        (store.state_dir(key_of()) / "step").write_text("1")
    with store.building(key_of(), lambda: None):
        kept = (store.state_dir(key_of()) / "step").read_text()

    commit(store, tmp_path)

    assert kept == "1"
    assert not store.state_dir(key_of()).exists()


def test_foreign_file_is_refused(store: Store, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "link").symlink_to("/etc/hostname")

    with pytest.raises(StageFailed) as caught:
        store.commit(
            key_of(),
            staged,
            key_document=key_document("out"),
            stage="x",
            measure=MEASURE,
        )

    assert caught.value.code == "store.foreign-file"
    assert store.lookup(key_of()) is None


def test_prune_empties_this_machine_only(store: Store, tmp_path: Path) -> None:
    """After a prune the local part is empty; a shared part still has the result."""
    result = commit(store, tmp_path)

    prune(store, older_than_seconds=0.0)

    assert list_records(store) == []
    found = store.lookup(key_of())
    assert found == (result if isinstance(store, TieredStore) else None)
    if found is not None:
        store.bring([found])
        assert store.is_here(found)
        assert verify_store(store) == []
