"""What S3 and networks do to a publisher, and what must be true afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from faulty_s3 import FaultyS3
from lmi_build.digest import digest_bytes
from lmi_build.errors import LmiBuildError, PublishFailed, RemoteFailed
from lmi_build.events import ignore
from lmi_build.publishers.check import verify_published
from lmi_build.publishers.download import download
from lmi_build.publishers.laws import publish_version
from lmi_build.publishers.reader import open_artifact
from lmi_build.values.publish import MIN_PART_BYTES
from lmi_build.values.recipe import PublishSpec
from publishing import (
    KEYS,
    LARGE,
    QUICK,
    Destination,
    Packed,
    folder_destination,
    pack,
    s3_client,
    s3_destination,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGE_BYTES = 2 * MIN_PART_BYTES + 12_345
_PARTS = 3


@pytest.fixture(scope="module")
def running() -> Iterator[FaultyS3]:
    """One server for all tests."""
    with FaultyS3() as server:
        yield server


@pytest.fixture
def server(running: FaultyS3) -> Iterator[FaultyS3]:
    """The server without rules, before and after."""
    running.forget()
    yield running
    running.forget()


@pytest.fixture
def place(server: FaultyS3, tmp_path: Path) -> Destination:
    """A fresh bucket."""
    bucket = "fault" + digest_bytes(str(tmp_path).encode())[7:19]
    return s3_destination(server, bucket, tmp_path)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """An artifact with a file that goes in three parts."""
    return pack(tmp_path_factory.mktemp("tree"), large_bytes=_LARGE_BYTES)


def _discard(_receipt: object) -> None:
    """A hook returns nothing."""


def bucket_of(place: Destination) -> str:
    return place.spec.to.split("/")[2]


def uploads(server: FaultyS3, place: Destination) -> list[Any]:
    """Uploads in progress."""
    answer = s3_client(server).list_multipart_uploads(Bucket=bucket_of(place))
    found: list[Any] = answer.get("Uploads", [])
    return found


def assert_whole(place: Destination) -> None:
    """What `latest.json` points at has every byte."""
    with open_artifact(
        place.spec.to + "/nm", place.settings, access=place.spec
    ) as published:
        assert verify_published(published, ignore) == ()


def fails(place: Destination, packed: Packed) -> LmiBuildError:
    """Publish, which must fail, and keep the promise of the manifest."""
    with pytest.raises(LmiBuildError) as caught:
        place.publish(packed)
    assert not any(key.endswith("manifest.json") for key in place.stored())
    assert caught.value.hints
    return caught.value


@pytest.mark.parametrize(
    "pattern",
    [
        "PUT .*partNumber=2",
        "PUT .*properties",
        r"POST .*\?uploads",
        "POST .*uploadId",
        "PUT .*manifest.json",
        "PUT .*latest.json",
        "HEAD",
        "GET .*list-type",
        "GET .*manifest.json",
    ],
)
@pytest.mark.parametrize("kind", ["slow-down", "internal-error", "reset", "drop-after"])
def test_passing_faults_are_survived(
    server: FaultyS3, place: Destination, packed: Packed, pattern: str, kind: str
) -> None:
    """One fault of any kind at any request changes nothing about the result."""
    rule = server.rule(pattern, kind)

    receipt = place.publish(packed)

    assert rule.struck == 1
    assert receipt.uploaded_bytes == packed.num_bytes
    assert_whole(place)
    assert uploads(server, place) == []


def test_stalled_answer_is_asked_again(
    server: FaultyS3, place: Destination, packed: Packed
) -> None:
    """A server that stops answering is given up after the read timeout."""
    rule = server.rule("PUT .*partNumber=1", "stall", seconds=4.0)

    place.publish(packed)

    assert rule.struck == 1
    assert_whole(place)


@pytest.mark.parametrize(
    ("pattern", "kind", "code"),
    [
        ("PUT .*partNumber", "slow-down", "remote.throttled"),
        ("PUT .*partNumber", "internal-error", "remote.server-error"),
        ("PUT .*partNumber", "reset", "remote.unreachable"),
        ("PUT .*partNumber", "stall", "remote.unreachable"),
        ("PUT .*partNumber", "expired-token", "remote.expired-token"),
        ("PUT .*partNumber", "access-denied", "remote.access-denied"),
        ("PUT .*partNumber", "corrupt", "remote.checksum-refused"),
        ("PUT .*properties", "corrupt", "remote.checksum-refused"),
        ("POST .*uploads", "kms", "remote.kms-refused"),
        ("HEAD", "access-denied", "remote.access-denied"),
        ("PUT .*manifest.json", "not-implemented", "remote.not-implemented"),
        ("PUT .*manifest.json", "conflict", "remote.refused"),
        ("GET .*manifest.json", "redirect", "remote.wrong-region"),
    ],
)
def test_lasting_faults_are_explained_then_resumed(
    server: FaultyS3,
    place: Destination,
    packed: Packed,
    pattern: str,
    kind: str,
    code: str,
) -> None:
    """A lasting fault has a code and a way out, and the next run completes."""
    server.rule(pattern, kind, times=99, seconds=2.5)

    error = fails(place, packed)

    assert error.code == code
    assert error.exit_code == 6
    server.forget()
    place.publish(packed)
    assert_whole(place)
    assert uploads(server, place) == []


def test_damage_on_the_wire_is_sent_again(
    server: FaultyS3, place: Destination, packed: Packed
) -> None:
    """S3 refuses a part whose bytes flipped on the way; it is sent once more."""
    part = server.rule("PUT .*partNumber=3", "corrupt")
    small = server.rule("PUT .*properties", "corrupt")

    place.publish(packed)

    assert (part.struck, small.struck) == (1, 1)
    assert server.count("PUT .*partNumber=3") == 2
    assert_whole(place)


def test_every_write_carries_a_checksum(
    server: FaultyS3, place: Destination, packed: Packed
) -> None:
    """Without a checksum S3 could not refuse damage; no object goes without."""
    place.publish(packed)

    writes = [
        headers
        for line, headers in zip(server.log, server.headers, strict=True)
        if line.startswith("PUT ") and "some/prefix" in line
    ]
    assert len(writes) == len(packed.files) - 1 + _PARTS + 2
    for headers in writes:
        assert any(name.startswith("x-amz-checksum-") for name in headers), headers


def test_lost_answer_to_the_manifest_is_no_conflict(
    server: FaultyS3, place: Destination, packed: Packed
) -> None:
    """The retry of a manifest that had landed gets 412, and is still a success."""
    server.rule("PUT .*manifest.json", "drop-after")

    place.publish(packed)

    assert server.count("PUT .*manifest.json") == 2
    assert_whole(place)


def test_lost_answer_to_the_pointer_is_no_conflict(
    server: FaultyS3, place: Destination, packed: Packed, tmp_path: Path
) -> None:
    """The same holds for moving `latest.json` from another version."""
    place.publish(pack(tmp_path / "old", seed=9))
    server.rule("PUT .*latest.json", "drop-after")

    place.publish(packed)

    with open_artifact(
        place.spec.to + "/nm", place.settings, access=place.spec
    ) as published:
        assert published.manifest_bytes() == packed.manifest


def test_losing_the_pointer_is_told(
    server: FaultyS3, place: Destination, packed: Packed, tmp_path: Path
) -> None:
    """Another publisher between our read and our write keeps `latest.json`."""
    place.publish(pack(tmp_path / "old", seed=9))
    other = pack(tmp_path / "other", seed=10)
    rule = server.rule(
        "PUT .*latest.json", "call", hook=lambda: _discard(place.publish(other))
    )

    # The other publishes inside our request: an impatient client would ask again.
    patient = replace(QUICK, read_timeout_seconds=60)
    with pytest.raises(PublishFailed) as caught:
        place.publish(packed, transfer=patient)

    assert rule.struck == 1
    assert caught.value.code == "publish.latest-moved"
    assert other.digest in caught.value.message
    with open_artifact(
        place.spec.to + "/nm", place.settings, access=place.spec
    ) as published:
        assert published.manifest_bytes() == other.manifest
    with open_artifact(
        f"{place.spec.to}/nm/{packed.hexadecimal}", place.settings, access=place.spec
    ) as ours:
        assert verify_published(ours, ignore) == ()


def test_parts_of_a_failed_run_are_not_sent_again(
    server: FaultyS3, place: Destination, packed: Packed
) -> None:
    """A failed upload is taken up: only the part that is missing goes up."""
    server.rule("PUT .*partNumber=2", "access-denied", times=99)
    fails(place, packed)
    assert len(uploads(server, place)) == 1
    server.forget()

    place.publish(packed)

    assert server.count("PUT .*partNumber") == 1
    assert server.count(r"POST .*\?uploads") == 0
    assert_whole(place)
    assert uploads(server, place) == []


def test_foreign_parts_are_replaced(
    server: FaultyS3, place: Destination, packed: Packed
) -> None:
    """An upload in progress with other bytes of the right length is not trusted."""
    client = s3_client(server)
    key = f"some/prefix/nm/{packed.hexadecimal}/{LARGE}"
    bucket = bucket_of(place)
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(
        Bucket=bucket,
        Key=key,
        UploadId=upload,
        PartNumber=1,
        Body=b"x" * MIN_PART_BYTES,
    )

    place.publish(packed)

    assert_whole(place)
    assert uploads(server, place) == []


def test_upload_taken_away_is_begun_again(
    server: FaultyS3, place: Destination, packed: Packed
) -> None:
    """An upload that another publisher aborted is started over."""
    rule = server.rule("PUT .*partNumber=2", "no-upload")

    place.publish(packed)

    assert rule.struck == 1
    assert_whole(place)
    assert uploads(server, place) == []


def test_tags_key_and_owner_reach_every_object(
    server: FaultyS3, packed: Packed, tmp_path: Path
) -> None:
    """What the recipe says about storage holds for each object and each call."""
    bucket = "fault" + digest_bytes(str(tmp_path).encode())[7:19]
    place = s3_destination(
        server,
        bucket,
        tmp_path,
        kms_key_id="arn:aws:kms:us-east-1:123456789012:key/abc",
        tags={"team": "a b", "cost/center": "7+8=15"},
        expected_bucket_owner="123456789012",
    )
    server.forget()

    place.publish(packed)

    calls = list(zip(server.log, server.headers, strict=True))
    assert {h.get("x-amz-expected-bucket-owner") for _, h in calls} == {"123456789012"}
    client = s3_client(server)
    for key in place.stored():
        name = {"Bucket": bucket, "Key": f"some/prefix/{key}"}
        head = client.head_object(**name)
        assert head["ServerSideEncryption"] == "aws:kms"
        assert head["SSEKMSKeyId"].endswith("key/abc")
        tags = client.get_object_tagging(**name)["TagSet"]
        assert {t["Key"]: t["Value"] for t in tags} == place.spec.tags


def test_object_without_the_key_is_refused(
    server: FaultyS3, place: Destination, packed: Packed
) -> None:
    """Objects stored before without encryption do not pass as encrypted."""
    place.publish(packed)
    spec = PublishSpec(
        to=place.spec.to, endpoint_url=server.url, kms_key_id="alias/mine"
    )

    with pytest.raises(PublishFailed) as caught:
        place.publish(packed, destination=spec)

    assert caught.value.code == "publish.not-encrypted"


def test_missing_bucket_is_named(
    server: FaultyS3, place: Destination, packed: Packed
) -> None:
    """A bucket that does not exist is an error with the command that makes it."""
    spec = PublishSpec(to="s3://no-such-bucket/x", endpoint_url=server.url)

    with pytest.raises(RemoteFailed) as caught:
        place.publish(packed, destination=spec)

    assert caught.value.code == "remote.no-bucket"
    assert "s3 mb s3://no-such-bucket" in caught.value.hints[0]


def test_closed_port_is_unreachable(place: Destination, packed: Packed) -> None:
    """An endpoint where nothing listens is named."""
    spec = PublishSpec(to="s3://bucket/x", endpoint_url="http://127.0.0.1:9")

    with pytest.raises(RemoteFailed) as caught:
        place.publish(packed, destination=spec)

    assert caught.value.code == "remote.unreachable"
    assert any("http://127.0.0.1:9" in hint for hint in caught.value.hints)


def test_broken_download_goes_on_where_it_broke(
    server: FaultyS3, place: Destination, packed: Packed, tmp_path: Path
) -> None:
    """A connection that breaks in the middle of a file costs only the rest of it."""
    place.publish(packed)
    server.forget()
    server.rule("GET .*weights", "cut")

    download(
        place.spec.to + "/nm",
        tmp_path / "got",
        place.settings,
        ignore,
        access=place.spec,
        transfer=QUICK,
    )

    assert (tmp_path / "got" / LARGE).read_bytes() == packed.files[LARGE]
    ranges = [
        headers.get("range", "")
        for line, headers in zip(server.log, server.headers, strict=True)
        if line.startswith("GET ") and "weights" in line
    ]
    assert ranges[0] == ""
    assert int(ranges[1].removeprefix("bytes=").removesuffix("-")) > 0


def test_failed_download_is_taken_up(
    server: FaultyS3, place: Destination, packed: Packed, tmp_path: Path
) -> None:
    """A second run fetches what is missing and nothing else."""
    place.publish(packed)
    arguments: Any = (place.spec.to + "/nm", tmp_path / "got", place.settings, ignore)
    server.rule("GET .*serving.properties", "access-denied", times=99)
    with pytest.raises(RemoteFailed):
        download(*arguments, access=place.spec, transfer=QUICK)
    assert not (tmp_path / "got" / "manifest.json").exists()
    server.forget()

    download(*arguments, access=place.spec, transfer=QUICK)

    assert server.count("GET .*weights") == 0
    assert sorted(p.name for p in (tmp_path / "got").iterdir()) == [
        "manifest.json",
        "model",
        "serving.properties",
    ]


_PUBLISHER = """
import json, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from lmi_build.events import ignore
from lmi_build.publishers.destination import publish
from lmi_build.values.recipe import PublishSpec
from publishing import QUICK, settings_with_keys
asked = json.loads(sys.argv[2])
publish(
    Path(asked["tree"]), manifest_digest=asked["digest"], name="nm",
    destination=PublishSpec(to=asked["to"], endpoint_url=asked["endpoint_url"]),
    settings=settings_with_keys(Path(asked["tree"])), extra={}, emit=ignore,
    transfer=replace(QUICK, concurrency=asked["concurrency"]),
)
"""


def start_publisher(
    place: Destination, packed: Packed, *, concurrency: int = QUICK.concurrency
) -> subprocess.Popen[bytes]:
    """A publisher in a process of its own."""
    asked = {
        "tree": str(packed.tree),
        "digest": packed.digest,
        "to": place.spec.to,
        "endpoint_url": place.spec.endpoint_url,
        "concurrency": concurrency,
    }
    helpers = str(Path(__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", _PUBLISHER, helpers, json.dumps(asked)],
        env={"PATH": os.environ["PATH"], **KEYS},
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("seed", range(4))
def test_killed_publisher_is_taken_up_anywhere(
    server: FaultyS3, place: Destination, packed: Packed, seed: int
) -> None:
    """SIGKILL at any request loses nothing: never a manifest too early, no orphan."""
    # A publish of this artifact makes 18 requests; the first two send nothing.
    skip = random.Random(seed).randrange(2, 17)  # noqa: S311 -- which request
    process: list[subprocess.Popen[bytes]] = []
    rule = server.rule(
        "some/prefix",
        "call",
        skip=skip,
        hook=lambda: process[0].send_signal(signal.SIGKILL),
    )
    process.append(start_publisher(place, packed))
    assert process[0].wait() == -signal.SIGKILL
    assert rule.struck == 1
    if any(key.endswith("manifest.json") for key in place.stored()):
        uri = f"{place.spec.to}/nm/{packed.hexadecimal}"
        with open_artifact(uri, place.settings, access=place.spec) as published:
            assert verify_published(published, ignore) == ()

    place.publish(packed)

    assert_whole(place)
    assert uploads(server, place) == []


def test_interrupted_publisher_ends_soon(
    server: FaultyS3, place: Destination, tmp_path: Path
) -> None:
    """Control-C ends after the parts in flight, and the next run sends the rest."""
    packed = pack(tmp_path / "tree", large_bytes=8 * MIN_PART_BYTES)
    process: list[subprocess.Popen[bytes]] = []
    server.rule(
        "PUT .*partNumber",
        "call",
        hook=lambda: process[0].send_signal(signal.SIGINT),
    )
    process.append(start_publisher(place, packed, concurrency=1))
    assert process[0].wait() == -signal.SIGINT
    assert server.count("PUT .*partNumber") < 8
    server.forget()

    place.publish(packed)

    assert 0 < server.count("PUT .*partNumber") < 8
    assert_whole(place)
    assert uploads(server, place) == []


def test_two_publishers_share_an_upload(
    server: FaultyS3, place: Destination, packed: Packed
) -> None:
    """Publishers of one large artifact, begun together, both succeed."""
    processes = [start_publisher(place, packed) for _ in range(3)]

    assert [process.wait() for process in processes] == [0, 0, 0]
    assert_whole(place)
    assert uploads(server, place) == []


@pytest.mark.parametrize("step", range(1, 12))
def test_folder_stopped_at_any_step_is_completed(tmp_path: Path, step: int) -> None:
    """A folder publish that dies before any of its writes is completed by the next."""
    packed = pack(tmp_path / "tree")
    place = folder_destination(tmp_path / "dest", tmp_path)
    from lmi_build.publishers.folder import FolderPlace

    class Dying(FolderPlace):
        """Dies before its `step`-th operation."""

        left = step

        def __getattribute__(self, name: str) -> Any:
            """Count operations."""
            found = super().__getattribute__(name)
            if name in {"send", "create", "swap", "read", "holds", "tidy", "listing"}:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            return found

    def attempt(kind: type[FolderPlace]) -> None:
        publish_version(
            kind(tmp_path / "dest"),
            packed.tree,
            manifest_digest=packed.digest,
            name="nm",
            extra={},
            emit=ignore,
        )

    with pytest.raises(KeyboardInterrupt):
        attempt(Dying)
    committed = f"nm/{packed.hexadecimal}/manifest.json" in place.stored()
    if committed:
        uri = f"{place.spec.to}/nm/{packed.hexadecimal}"
        with open_artifact(uri, place.settings) as published:
            assert verify_published(published, ignore) == ()

    attempt(FolderPlace)

    assert_whole(place)


def test_leftovers_of_a_killed_copy_are_removed(tmp_path: Path) -> None:
    """A temporary file that nobody holds is gone after the next publish."""
    packed = pack(tmp_path / "tree")
    place = folder_destination(tmp_path / "dest", tmp_path)
    left = f"nm/{packed.hexadecimal}/model/.lmi-build-abc.tmp"
    place.put(left, b"half")

    place.publish(packed)

    assert left not in place.stored()
    assert_whole(place)


def test_full_disk_is_told_and_leaves_no_half_file(tmp_path: Path) -> None:
    """A limit on file length stops the copy; nothing half written has a name."""
    packed = pack(tmp_path / "tree")
    place = folder_destination(tmp_path / "dest", tmp_path)
    asked = start_limited(place, packed)

    assert asked.returncode == 1
    assert b"remote.full" in asked.stderr
    assert f"nm/{packed.hexadecimal}/{LARGE}" not in place.stored()
    assert not any(key.endswith("manifest.json") for key in place.stored())
    place.publish(packed)
    assert_whole(place)


def start_limited(
    place: Destination, packed: Packed
) -> subprocess.CompletedProcess[bytes]:
    """A publisher whose files may have 4 KiB."""
    asked = {
        "tree": str(packed.tree),
        "digest": packed.digest,
        "to": place.spec.to,
        "endpoint_url": None,
        "concurrency": 1,
    }
    limited = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from lmi_build.errors import LmiBuildError\n"
        "try:\n"
        + "".join(f"    {line}\n" for line in _PUBLISHER.strip().splitlines())
        + "except LmiBuildError as error:\n    raise SystemExit(error.code)\n"
    )
    helpers = str(Path(__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", limited, helpers, json.dumps(asked)],
        check=False,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
    )
