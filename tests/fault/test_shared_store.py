"""What a shared store keeps and says when S3, the network or a host fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.digest import digest_tree
from lmi_build.errors import LmiBuildError, RemoteFailed, UsageInvalid
from lmi_build.events import ignore
from lmi_build.execute.executor import execute
from lmi_build.execute.stores import open_store, split_store_url
from lmi_build.store.far import blob_key, record_key
from lmi_build.store.far_check import repair_far, verify_far
from lmi_build.store.gc import verify_store
from lmi_build.store.store import Store
from lmi_build.store.whereabouts import whereabouts
from lmi_build.units import MiB
from shared_stores import (
    BUCKET,
    MEASURE,
    bucket_server,
    build,
    client,
    commit,
    host,
    key_document,
    key_of,
    objects,
    opened,
)
from stage_plans import chain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faulty_s3 import FaultyS3
    from lmi_build.values.result import StageResult

TESTS = Path(__file__).parents[1]


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    """A server that holds the bucket."""
    with bucket_server() as found:
        yield found


def made(server: FaultyS3, folder: Path, name: str = "one") -> StageResult:
    """What a machine commits; every machine commits the same."""
    with opened(host(folder / name, server)) as store:
        result: StageResult = commit(store, folder)
        return result


def finds(server: FaultyS3, folder: Path, name: str) -> bool:
    """Whether a machine with nothing has the result, with all of its bytes."""
    given = host(folder / name, server)
    with opened(given) as store:
        found = store.lookup(key_of())
        if found is not None:
            store.bring([found])
    local = Store(given.cache_dir)
    return local.lookup(key_of()) is not None and verify_store(local) == []


def blob_of(result: StageResult) -> str:
    """Where the larger of its files lies."""
    return blob_key(next(e.digest for e in result.entries if e.path == "out.bin"))


def put(server: FaultyS3, key: str, data: bytes, **more: Any) -> None:
    """Write to the bucket by hand, as nobody should."""
    s3 = client(server)
    s3.put_object(Bucket=BUCKET, Key=f"team/store/{key}", Body=data, **more)
    s3.close()


def remove(server: FaultyS3, key: str) -> None:
    """Delete from the bucket by hand."""
    s3 = client(server)
    s3.delete_object(Bucket=BUCKET, Key=f"team/store/{key}")
    s3.close()


def unfinished(server: FaultyS3) -> list[Any]:
    """Uploads that were begun and neither completed nor aborted."""
    s3 = client(server)
    found = s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    s3.close()
    return list(found)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("expired-token", "remote.expired-token"),
        ("access-denied", "remote.access-denied"),
        ("slow-down", "remote.throttled"),
        ("internal-error", "remote.server-error"),
        ("kms", "remote.kms-refused"),
        ("redirect", "remote.wrong-region"),
        ("reset", "remote.unreachable"),
        ("not-implemented", "remote.not-implemented"),
    ],
)
@pytest.mark.parametrize("room", ["actions", "blobs"])
def test_refused_write_back_keeps_the_local_result(
    tmp_path: Path, server: FaultyS3, kind: str, code: str, room: str
) -> None:
    """It ends with exit status 6, says so, and leaves no record of half a result."""
    given = host(tmp_path, server)
    server.rule(rf"^PUT .*/{room}/", kind, times=1000)

    with opened(given) as store, pytest.raises(RemoteFailed) as caught:
        commit(store, tmp_path)

    assert caught.value.code == code
    assert caught.value.exit_code == 6
    assert "kept on this machine" in caught.value.hints[0]
    assert Store(given.cache_dir).lookup(key_of()) is not None
    assert not [name for name in objects(server) if name.startswith("actions/")]
    server.forget()
    with opened(given) as store:
        kept = store.lookup(key_of())
        assert kept is not None
        store.share(kept)
    assert finds(server, tmp_path, "other")


def test_server_without_conditions_is_refused_before_any_work(
    tmp_path: Path, server: FaultyS3
) -> None:
    """Where everybody would hold every lease, nobody builds."""
    counter = tmp_path / "count"
    server.rule(r"^PUT ", "unconditional", times=1000)

    with pytest.raises(RemoteFailed) as caught:
        build(chain(counter=str(counter)), host(tmp_path, server))

    assert (caught.value.code, caught.value.exit_code) == ("remote.not-implemented", 6)
    assert not counter.exists()


def test_build_that_could_not_share_only_sends_the_next_time(
    tmp_path: Path, server: FaultyS3
) -> None:
    """A stage whose result could not be written back is not built again."""
    given = host(tmp_path, server)
    counter = tmp_path / "count"
    item = chain(counter=str(counter))
    server.rule(r"^PUT .*/actions/", "expired-token", times=1000)
    with pytest.raises(RemoteFailed):
        build(item, given)
    server.forget()

    result = build(item, given)

    assert [row.cached for row in result.rows] == [True, False, False]
    assert len(counter.read_text().split()) == 3


@pytest.mark.parametrize(
    ("kind", "times"), [("slow-down", 2), ("internal-error", 2), ("reset", 1)]
)
def test_passing_trouble_is_ridden_out(
    tmp_path: Path, server: FaultyS3, kind: str, times: int
) -> None:
    """Throttling and dropped answers cost tries; the result arrives all the same."""
    server.rule(r"^PUT .*/blobs/", kind, times=times)
    server.rule(r"^GET .*/actions/", kind, times=times)

    made(server, tmp_path)

    assert finds(server, tmp_path, "two")


@pytest.mark.parametrize("room", ["actions", "blobs", "leases"])
def test_write_whose_answer_was_lost_is_recognised(
    tmp_path: Path, server: FaultyS3, room: str
) -> None:
    """A conditional write that was done, though nobody heard, is not a conflict."""
    rule = server.rule(rf"^PUT .*/{room}/", "drop-after")

    made(server, tmp_path)

    assert rule.struck == 1
    assert finds(server, tmp_path, "two")
    assert not [name for name in objects(server) if name.startswith("leases/")]


def test_damage_on_the_way_up_is_sent_again(tmp_path: Path, server: FaultyS3) -> None:
    """A flipped bit never becomes an object; the next try is right."""
    server.rule(r"^PUT .*/blobs/", "corrupt", times=2)

    made(server, tmp_path)

    with opened(host(tmp_path / "two", server)) as store:
        assert verify_far(store.far) == []


def test_truncated_blob_is_a_miss_and_is_replaced(
    tmp_path: Path, server: FaultyS3
) -> None:
    """A record whose file was cut short is not used; the next commit heals it."""
    key = blob_of(made(server, tmp_path))
    put(server, key, b"ab")
    assert not finds(server, tmp_path, "two")

    made(server, tmp_path, "two")

    assert objects(server)[key] == b"abc"
    assert finds(server, tmp_path, "three")


def test_removed_blob_is_a_miss_and_is_sent_again(
    tmp_path: Path, server: FaultyS3
) -> None:
    """What a rule of the bucket removed comes back with the next commit."""
    result = made(server, tmp_path)
    remove(server, blob_of(result))
    with opened(host(tmp_path / "two", server)) as store:
        cause = whereabouts(store, [result.key])[result.key].cause

    made(server, tmp_path, "two")

    assert "files of its record are gone from the shared store: out.bin" in cause
    assert finds(server, tmp_path, "three")


def test_removed_blob_is_seen_by_a_thorough_look(
    tmp_path: Path, server: FaultyS3
) -> None:
    """A machine that has the files sends again what is gone, when it asks for all."""
    result = made(server, tmp_path)
    remove(server, blob_of(result))

    with opened(host(tmp_path / "one", server)) as store:
        assert store.share(result, thorough=True) == 3

    assert finds(server, tmp_path, "two")


def test_build_for_others_sends_again_what_was_lost(
    tmp_path: Path, server: FaultyS3
) -> None:
    """Results that only this machine can make are whole there when it says so."""
    given = host(tmp_path / "one", server)
    item = chain()
    result = build(item, given).rows[0].result
    remove(server, blob_key(result.entries[0].digest))

    with opened(given) as store:
        execute(item, store=store, settings=given, emit=ignore, thorough=True)

    with opened(host(tmp_path / "two", server)) as store:
        assert store.lookup(result.key) == result


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda data: data[:-20], id="cut"),
        pytest.param(lambda data: data.replace(b"out.bin", b"../../x"), id="renamed"),
        pytest.param(lambda data: data.replace(b'"out"', b'"z"'), id="other-work"),
        pytest.param(lambda _: b"[1]", id="foreign"),
    ],
)
def test_damaged_record_is_a_miss_and_is_replaced(
    tmp_path: Path, server: FaultyS3, damage: Any
) -> None:
    """A record that does not prove itself is told of and overwritten."""
    result = made(server, tmp_path)
    key = record_key(result.key)
    bad = damage(objects(server)[key])
    assert bad != objects(server)[key]
    put(server, key, bad)
    with opened(host(tmp_path / "two", server)) as store:
        cause = whereabouts(store, [result.key])[result.key].cause

    made(server, tmp_path, "two")

    assert "damaged" in cause
    assert finds(server, tmp_path, "three")


def test_record_that_would_leave_the_folder_is_refused(
    tmp_path: Path, server: FaultyS3
) -> None:
    """A record that proves itself, but whose file names climb, is never laid out."""
    result = made(server, tmp_path)
    key = record_key(result.key)
    record = json.loads(objects(server)[key])
    record["entries"][0][0] = "../../escaped"
    record["digest"] = digest_tree([tuple(row) for row in record["entries"]])
    put(server, key, json.dumps(record).encode())

    with opened(host(tmp_path / "two", server)) as store:
        found = whereabouts(store, [result.key])[result.key]

    assert found.result is None
    assert "`..` part" in found.cause


def test_answer_that_was_cut_is_taken_up(tmp_path: Path, server: FaultyS3) -> None:
    """A connection that breaks costs a request; nothing half gets a blob's name."""
    made(server, tmp_path)
    rule = server.rule(r"^GET .*/blobs/", "cut")

    assert finds(server, tmp_path, "two")
    assert rule.struck == 1


def test_large_blob_comes_in_pieces(tmp_path: Path, server: FaultyS3) -> None:
    """Pieces overlap and are joined in order, with a broken one asked for again."""
    data = b"".join(n.to_bytes(4, "big") for n in range(9 * MiB))
    with opened(host(tmp_path / "one", server)) as store:
        commit(store, tmp_path, data=data)
    rule = server.rule(r"^GET .*/blobs/", "cut", skip=2)
    server.log.clear()

    assert finds(server, tmp_path, "two")
    assert rule.struck == 1
    # Five pieces of eight MiB and one of the rest, the small file, and one again.
    assert server.count(r"^GET .*/blobs/") == 7


def test_blob_of_other_bytes_is_named_and_repaired(
    tmp_path: Path, server: FaultyS3
) -> None:
    """Bytes that lie about their name end with exit status 6; repair removes them."""
    result = made(server, tmp_path)
    key = blob_of(result)
    lie = {"lmi-build-sha256": key.rpartition("/")[2]}
    put(server, key, b"abX", Metadata=lie)
    second = host(tmp_path / "two", server)

    with opened(second) as store:
        found = store.lookup(result.key)
        assert found is not None
        with pytest.raises(RemoteFailed) as caught:
            store.bring([found])
        faults = verify_far(store.far)
        repair_far(store.far, faults)
        assert verify_far(store.far) == []

    assert (caught.value.code, caught.value.exit_code) == ("store.remote-damaged", 6)
    assert [(f.code, f.object_key) for f in faults] == [("store.corrupt", key)]
    assert not (second.cache_dir / key).exists()
    assert not finds(server, tmp_path, "three")
    made(server, tmp_path, "two")
    assert finds(server, tmp_path, "four")


def test_two_writers_of_one_key_agree(tmp_path: Path, server: FaultyS3) -> None:
    """Of two records the first stays, and the second writer takes it over."""
    results = []
    stores = [open_store(host(tmp_path / n, server), host=n) for n in ("one", "two")]
    for number, store in enumerate(stores):
        staged = tmp_path / f"staged{number}"
        staged.mkdir()
        (staged / "out.bin").write_text(f"number {number}")
        (staged / "same.txt").write_text("same")
        results.append(
            store.commit(
                key_of(),
                staged,
                key_document=key_document("out"),
                stage="fetch",
                measure=MEASURE,
            )
        )
    second = stores[1].lookup(key_of())
    for store in stores:
        store.close()

    assert second is not None
    assert results[0].digest == results[1].digest == second.digest
    assert finds(server, tmp_path, "three")


def test_large_blob_goes_on_after_a_fault(tmp_path: Path, server: FaultyS3) -> None:
    """Parts that arrived before the token ran out are not sent again."""
    given = host(tmp_path / "one", server)
    data = bytes(range(256)) * (12 * MiB // 256)
    server.rule(r"^PUT .*partNumber=3", "expired-token", times=1000)
    with opened(given) as store, pytest.raises(RemoteFailed) as caught:
        commit(store, tmp_path, data=data)
    server.forget()

    with opened(given) as store:
        found = store.lookup_here(key_of())
        assert found is not None
        store.share(found)

    assert caught.value.code == "remote.expired-token"
    assert server.count(r"^PUT .*partNumber=[12]") == 0
    assert server.count(r"^PUT .*partNumber=3") == 1
    assert unfinished(server) == []
    assert finds(server, tmp_path, "two")


def test_two_hosts_send_one_large_blob(tmp_path: Path, server: FaultyS3) -> None:
    """Whoever ends first wins; no upload is left behind, and the bytes are right."""
    data = bytes(reversed(range(256))) * (12 * MiB // 256)
    errors: list[BaseException] = []

    def one(name: str) -> None:
        try:
            staged = tmp_path / f"staged-{name}"
            staged.mkdir()
            (staged / "big").write_bytes(data)
            # No lease: a host that lost it may commit at the same time.
            with opened(host(tmp_path / name, server)) as store:
                store.commit(
                    key_of(),
                    staged,
                    key_document=key_document("out"),
                    stage="x",
                    measure=MEASURE,
                )
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    with opened(host(tmp_path / "three", server)) as store:
        assert verify_far(store.far) == []
    assert unfinished(server) == []


def test_killed_during_write_back(tmp_path: Path, server: FaultyS3) -> None:
    """A process killed between blobs and record leaves no result, and loses none."""
    script = (
        f"import sys; sys.path[:0] = [{str(TESTS)!r}]\n"
        "from pathlib import Path\nfrom types import SimpleNamespace\n"
        "from shared_stores import *\n"
        "root = Path(sys.argv[2])\n"
        "given = host(root / 'one', SimpleNamespace(url=sys.argv[1]))\n"
        "commit(open_store(given, transfer=QUICK), root)\n"
    )
    struck = threading.Event()
    server.rule(r"^PUT .*/actions/", "reset", times=1000, hook=struck.set)
    process = subprocess.Popen([sys.executable, "-c", script, server.url, tmp_path])
    assert struck.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.forget()

    assert not finds(server, tmp_path, "two")
    with opened(host(tmp_path / "one", server)) as store:
        kept = store.lookup(key_of())
        assert kept is not None
        store.share(kept)
    assert server.count(r"^PUT .*/blobs/") == 0
    assert finds(server, tmp_path, "three")


def test_bucket_that_is_not_there(tmp_path: Path, server: FaultyS3) -> None:
    """A bucket that does not exist ends before anything is built."""
    counter = tmp_path / "count"
    given = host(tmp_path, server, "s3://no-such-bucket/x")

    with pytest.raises(RemoteFailed) as caught:
        build(chain(counter=str(counter)), given)

    assert (caught.value.code, caught.value.exit_code) == ("remote.no-bucket", 6)
    assert not counter.exists()
    assert "`--store`" in " ".join(caught.value.hints)


def test_bucket_without_a_prefix(tmp_path: Path, server: FaultyS3) -> None:
    """A store may take a whole bucket."""
    given = host(tmp_path, server, f"s3://{BUCKET}")

    with opened(given) as store:
        commit(store, tmp_path)
        assert verify_far(store.far) == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "bucket/x",
        "s3://",
        "s3://A/x",
        "s3://ab/x",
        "s3://bucket/a//b",
        "s3://bucket/../x",
        "gs://b/x",
        "https://bucket.s3.amazonaws.com/x",
    ],
)
def test_address_that_is_none_is_refused(url: str) -> None:
    """The form is checked before anything else."""
    with pytest.raises(UsageInvalid) as caught:
        split_store_url(url)

    assert caught.value.code == "store.bad-url"


def test_refused_reading_is_told_by_why_and_raised_by_build(
    tmp_path: Path, server: FaultyS3
) -> None:
    """`why` goes on and names the cause; a build does not go on in the dark."""
    given = host(tmp_path, server)
    server.rule(r"^GET .*/actions/", "access-denied", times=1000)
    item = chain()

    with opened(given) as store:
        found = whereabouts(store, [stage.key for stage in item.stages])
    with pytest.raises(LmiBuildError) as caught:
        build(item, given)

    causes = {place.cause for place in found.values()}
    assert len(causes) == 1
    assert "AccessDenied" in causes.pop()
    assert caught.value.code == "remote.access-denied"
    assert "s3:GetObject" in caught.value.hints[0]


def test_offline_does_not_reach_out(tmp_path: Path, server: FaultyS3) -> None:
    """`--offline` with a store elsewhere is refused in words, not by a timeout."""
    given = replace(
        host(tmp_path, server),
        offline=True,
        secrets={"aws": {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}},
    )

    with pytest.raises(RemoteFailed) as caught:
        build(chain(), given)

    assert caught.value.code == "remote.offline"
    assert "--store" in caught.value.hints[0]


def test_encryption_is_asked_for(tmp_path: Path, server: FaultyS3) -> None:
    """Every object of the store carries the key that the user named."""
    given = replace(host(tmp_path, server), store_kms_key_id="alias/team")

    with opened(given) as store:
        commit(store, tmp_path)

    puts = [
        headers
        for line, headers in zip(server.log, server.headers, strict=True)
        if line.startswith("PUT ")
    ]
    assert puts
    assert {h.get("x-amz-server-side-encryption") for h in puts} == {"aws:kms"}
