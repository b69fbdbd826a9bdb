"""Leases: one holder at a time, by the server's clock alone; half-done work travels."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.store.far import FarStore
from lmi_build.store.lease import LEASE_SECONDS, Lease, claim, lease_key, look
from lmi_build.store.mirror import Mirror
from memory_remote import Bucket, MemoryRemote
from shared_stores import key_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = key_of()


def grow_old(bucket: Bucket, seconds: float) -> None:
    """Let time pass at the server, and nowhere else."""
    for key, (data, tag, digest, written) in list(bucket.objects.items()):
        bucket.objects[key] = (data, tag, digest, written - seconds)


def wait_until(true: Callable[[], bool]) -> bool:
    """Whether something becomes true within ten seconds."""
    for _ in range(1000):
        if true():
            return True
        time.sleep(0.01)
    return False


@given(st.integers(2, 6))
@settings(max_examples=10)
def test_of_many_claims_one_wins(num_hosts: int) -> None:
    """However many ask at once, one host holds the key."""
    bucket = Bucket()
    barrier = threading.Barrier(num_hosts)
    won: list[Lease] = []

    def ask(name: str) -> None:
        barrier.wait()
        lease, _ = claim(MemoryRemote(bucket), KEY, host=name)
        if lease is not None:
            won.append(lease)

    threads = [threading.Thread(target=ask, args=(f"h{n}",)) for n in range(num_hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    won[0].end(done=True)
    assert bucket.objects == {}


@given(st.floats(0, 300, allow_nan=False))
@settings(max_examples=40)
def test_lease_ends_by_the_servers_clock(age_seconds: float) -> None:
    """It is free when it was not renewed for its seconds, and not before."""
    bucket = Bucket()
    document = {"schema": 1, "holder": "lost/1", "beat": 0, "seconds": 60.0}
    bucket.keep(lease_key(KEY), json.dumps(document).encode(), "")
    grow_old(bucket, age_seconds)

    seen = look(MemoryRemote(bucket), KEY)

    if age_seconds < LEASE_SECONDS:
        assert not seen.free
    if age_seconds > LEASE_SECONDS + 1:
        assert seen.free


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"holder": 3}', b"\xff"])
def test_foreign_lease_is_waited_for_and_then_taken(data: bytes) -> None:
    """What is no lease of ours holds a key no longer than one of ours."""
    bucket = Bucket()
    bucket.keep(lease_key(KEY), data, "")
    young, _ = claim(MemoryRemote(bucket), KEY, host="a")
    grow_old(bucket, LEASE_SECONDS + 2)

    lease, _ = claim(MemoryRemote(bucket), KEY, host="a")

    assert young is None
    assert lease is not None
    lease.end(done=True)


def test_holder_renews_while_it_works() -> None:
    """A lease is written anew before it ends, as long as its holder lives."""
    bucket = Bucket()
    lease, _ = claim(MemoryRemote(bucket), KEY, host="a", seconds=0.3)
    assert lease is not None
    tags: set[str] = set()

    def beats() -> int:
        tags.add(bucket.objects[lease_key(KEY)][1])
        return len(tags)

    assert wait_until(lambda: beats() > 3)
    assert not lease.lost
    lease.end(done=False)
    assert look(MemoryRemote(bucket), KEY).free


def test_lost_lease_is_noticed_and_left_alone() -> None:
    """A host that was taken for lost sees it, and does not end the new lease."""
    bucket = Bucket()
    first, _ = claim(MemoryRemote(bucket), KEY, host="a", seconds=0.3)
    assert first is not None
    bucket.fuse = 0  # it cannot write; the others can wait
    grow_old(bucket, 10)
    bucket.fuse = None
    second, _ = claim(MemoryRemote(bucket), KEY, host="b", seconds=60)

    if second is None:  # the first renewed in between: it was not lost
        first.end(done=True)
        return
    assert wait_until(lambda: first.lost)
    first.end(done=True)

    assert json.loads(bucket.objects[lease_key(KEY)][0])["holder"].startswith("b/")
    second.end(done=True)


def mirror(bucket: Bucket, root: Path, *, held: bool = True) -> Mirror:
    """The mirror of one host."""
    folder = root / "state" / "k"
    folder.mkdir(parents=True, exist_ok=True)
    return Mirror(
        FarStore(MemoryRemote(bucket)),
        KEY,
        folder=folder,
        scratch=root / "links",
        holding=lambda: held,
    )


def tree(root: Path) -> dict[str, bytes]:
    """Every file of a host's state folder."""
    folder = root / "state" / "k"
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    }


NAMES = st.text("abc", min_size=1, max_size=2)
FILES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=2).map(lambda p: "/".join(["d", *p, "f"])),
    st.binary(max_size=20),
    max_size=5,
)


@given(st.lists(FILES, min_size=1, max_size=4), st.integers(0, 12))
@settings(max_examples=60)
def test_another_host_gets_one_whole_moment(
    tmp_path_factory: pytest.TempPathFactory,
    moments: list[dict[str, bytes]],
    fuse: int,
) -> None:
    """Wherever a host is killed, what is restored is one of its moments, whole."""
    root = tmp_path_factory.mktemp("mirror")
    bucket = Bucket()
    one = mirror(bucket, root / "one")
    folder = root / "one" / "state" / "k"
    seen: list[dict[str, bytes]] = [{}]
    bucket.fuse = fuse
    for files in moments:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        seen.append(tree(root / "one"))
        one._try()
    bucket.fuse = None

    mirror(bucket, root / "two").restore()

    assert tree(root / "two") in seen


def test_file_that_grows_is_not_in_a_moment(tmp_path: Path) -> None:
    """What changes while it is sent is left out, and what is whole is not."""
    bucket = Bucket()
    one = mirror(bucket, tmp_path / "one")
    folder = tmp_path / "one" / "state" / "k"
    (folder / "done").write_bytes(b"done")
    (folder / "growing").write_bytes(b"half")
    send = MemoryRemote.send

    class Slow(MemoryRemote):
        def send(self, source: Path, key: str, entry: object, sent: object) -> None:
            with (folder / "growing").open("ab") as stream:
                stream.write(b" more")
            send(self, source, key, entry, sent)  # type: ignore[arg-type]

    one._far.remote = Slow(bucket)
    one._try()
    mirror(bucket, tmp_path / "two").restore()

    assert tree(tmp_path / "two") == {"done": b"done"}


def test_own_state_is_kept_when_nobody_went_on(tmp_path: Path) -> None:
    """A host that comes back has more than it had sent; it loses nothing."""
    bucket = Bucket()
    one = mirror(bucket, tmp_path)
    (tmp_path / "state" / "k" / "a").write_bytes(b"1")
    one._try()
    (tmp_path / "state" / "k" / "b").write_bytes(b"2")

    replaced = mirror(bucket, tmp_path).restore()

    assert not replaced
    assert tree(tmp_path) == {"a": b"1", "b": b"2"}


def test_damaged_state_is_a_clean_start(tmp_path: Path) -> None:
    """A file that is gone or wrong there costs the state, not the build."""
    bucket = Bucket()
    one = mirror(bucket, tmp_path / "one")
    (tmp_path / "one" / "state" / "k" / "a").write_bytes(b"1")
    one._try()
    (name,) = [k for k in bucket.objects if not k.endswith("index.json")]
    bucket.keep(name, b"2", "")

    replaced = mirror(bucket, tmp_path / "two").restore()

    assert not replaced
    assert tree(tmp_path / "two") == {}


def test_who_holds_nothing_sends_nothing(tmp_path: Path) -> None:
    """After a lease is lost, the state of the new holder is not touched."""
    bucket = Bucket()
    one = mirror(bucket, tmp_path, held=False)
    (tmp_path / "state" / "k" / "a").write_bytes(b"1")

    one._try()
    one.end(finished=True)

    assert bucket.objects == {}


def test_finished_work_leaves_no_state(tmp_path: Path) -> None:
    """After a commit the bucket holds none of it, orphans included."""
    bucket = Bucket()
    one = mirror(bucket, tmp_path)
    (tmp_path / "state" / "k" / "a").write_bytes(b"1")
    one._try()
    one._far.remote.put(one._prefix + "0" * 64, b"of a killed host")

    one.end(finished=True)

    assert bucket.objects == {}
