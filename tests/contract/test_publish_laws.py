"""The laws of publishing, which every kind of destination obeys."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from faulty_s3 import FaultyS3
from lmi_build.digest import digest_bytes
from lmi_build.errors import PublishFailed, RemoteFailed, UsageInvalid, VerifyFailed
from lmi_build.events import StageProgress, ignore
from lmi_build.publishers.check import verify_published
from lmi_build.publishers.download import download
from lmi_build.publishers.reader import ArtifactReader, open_artifact
from publishing import (
    LARGE,
    Destination,
    Packed,
    Recorder,
    folder_destination,
    pack,
    s3_destination,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    """One server; each test has a bucket of its own."""
    with FaultyS3() as running:
        yield running


@pytest.fixture(params=["s3", "folder"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, server: FaultyS3
) -> Destination:
    """Each kind of destination, fresh."""
    if request.param == "folder":
        return folder_destination(tmp_path / "dest", tmp_path)
    bucket = "laws" + digest_bytes(str(tmp_path).encode())[7:19]
    return s3_destination(server, bucket, tmp_path)


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    """A small artifact."""
    return pack(tmp_path / "tree")


def reader(place: Destination, tail: str = "/nm") -> ArtifactReader:
    """Open what was published."""
    return open_artifact(place.spec.to + tail, place.settings, access=place.spec)


def test_everything_arrives_under_the_digest(
    place: Destination, packed: Packed, tmp_path: Path
) -> None:
    """A version is its files, the files beside, its manifest, and the pointer."""
    (tmp_path / "verify.json").write_text("{}")

    receipt = place.publish(packed, extra={"verify.json": tmp_path / "verify.json"})

    version = f"nm/{packed.hexadecimal}/"
    expected = {version + path for path in (*packed.files, "manifest.json")}
    expected |= {version + "verify.json", "nm/latest.json"}
    assert expected == place.stored()
    assert receipt.uri == f"{place.spec.to}/{version}"
    assert receipt.manifest_digest == packed.digest
    assert (receipt.uploaded_bytes, receipt.skipped_bytes) == (packed.num_bytes, 0)
    assert receipt.num_files == len(packed.files) + 1


def test_publishing_again_sends_no_data(place: Destination, packed: Packed) -> None:
    """A second publish of the same artifact skips every byte."""
    place.publish(packed)

    receipt = place.publish(packed)

    assert (receipt.uploaded_bytes, receipt.skipped_bytes) == (0, packed.num_bytes)


def test_progress_ends_at_the_total(place: Destination, packed: Packed) -> None:
    """Progress grows to exactly the artifact's bytes, sent or skipped."""
    for _ in range(2):
        recorder = Recorder()
        place.publish(packed, emit=recorder)

        told = [e for e in recorder.events if isinstance(e, StageProgress)]
        assert [e.done for e in told] == sorted(e.done for e in told)
        assert (told[-1].done, told[-1].total) == (packed.num_bytes, packed.num_bytes)


def test_latest_moves_to_the_newest(place: Destination, tmp_path: Path) -> None:
    """The pointer follows each publish, and old versions stay whole."""
    first, second = (pack(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    place.publish(first)

    place.publish(second)

    with reader(place) as latest:
        assert latest.manifest_bytes() == second.manifest
    with reader(place, f"/nm/{first.hexadecimal}") as old:
        assert verify_published(old, ignore) == ()


def test_foreign_manifest_is_a_conflict(place: Destination, packed: Packed) -> None:
    """A version prefix with another manifest is never written to."""
    key = f"nm/{packed.hexadecimal}/manifest.json"
    place.put(key, b"{}")

    with pytest.raises(PublishFailed) as caught:
        place.publish(packed)

    assert caught.value.code == "publish.conflict"
    assert packed.digest in caught.value.message
    assert digest_bytes(b"{}") in caught.value.message
    assert place.stored() == {key}


def test_unfinished_version_is_completed(place: Destination, packed: Packed) -> None:
    """Without a manifest, missing and wrong files are sent and right ones are not."""
    place.publish(packed)
    version = f"nm/{packed.hexadecimal}/"
    place.remove(version + "manifest.json")
    place.remove(version + "serving.properties")
    place.put(version + LARGE, b"x" * len(packed.files[LARGE]))

    receipt = place.publish(packed)

    sent = len(packed.files[LARGE]) + len(packed.files["serving.properties"])
    assert receipt.uploaded_bytes == sent
    with reader(place) as published:
        assert verify_published(published, ignore) == ()


def test_damaged_version_is_not_repaired(place: Destination, packed: Packed) -> None:
    """A committed version with a wrong file is refused, and left as it is."""
    place.publish(packed)
    place.put(f"nm/{packed.hexadecimal}/{LARGE}", b"x" * len(packed.files[LARGE]))
    before = place.stored()

    with pytest.raises(PublishFailed) as caught:
        place.publish(packed)

    assert caught.value.code == "publish.damaged"
    assert "manifest.json" in caught.value.hints[0]
    assert place.stored() == before


def test_changed_content_leaves_no_manifest(place: Destination, packed: Packed) -> None:
    """A local byte that flipped since packing is noticed while it is sent."""
    data = bytearray(packed.files[LARGE])
    data[777] ^= 1
    (packed.tree / LARGE).write_bytes(data)

    with pytest.raises(PublishFailed) as caught:
        place.publish(packed)

    assert caught.value.code == "publish.content-differs"
    version = f"nm/{packed.hexadecimal}/"
    assert not {version + LARGE, version + "manifest.json"} & place.stored()
    assert "nm/latest.json" not in place.stored()


@pytest.mark.parametrize("fault", ["missing", "short", "unlisted", "manifest"])
def test_other_tree_sends_nothing(
    place: Destination, packed: Packed, fault: str
) -> None:
    """A tree that is not what its manifest lists is refused before any write."""
    if fault == "missing":
        (packed.tree / LARGE).unlink()
    else:
        name = {"short": LARGE, "unlisted": "more.txt", "manifest": "manifest.json"}
        (packed.tree / name[fault]).write_bytes(b"{}")

    with pytest.raises(PublishFailed) as caught:
        place.publish(packed)

    assert caught.value.code == "publish.tree-differs"
    assert place.stored() == set()


def test_files_beside_stay_as_first_published(
    place: Destination, packed: Packed, tmp_path: Path
) -> None:
    """A version never changes: a second `verify.json` is told, not written."""
    report = tmp_path / "verify.json"
    report.write_text('{"seconds": 1}')
    place.publish(packed, extra={"verify.json": report})
    report.write_text('{"seconds": 2}')
    recorder = Recorder()

    place.publish(packed, extra={"verify.json": report}, emit=recorder)

    assert recorder.codes() == ["publish.beside-kept"]
    with reader(place) as published:
        assert published.read("verify.json") == b'{"seconds": 1}'


def test_verify_finds_every_fault(place: Destination, packed: Packed) -> None:
    """A flipped byte, another length, a missing and a foreign file are all named."""
    place.publish(packed)
    version = f"nm/{packed.hexadecimal}/"
    data = bytearray(packed.files[LARGE])
    data[-1] ^= 1
    place.put(version + LARGE, bytes(data))
    place.put(version + "model/empty", b"1")
    place.put(version + "model/foreign.py", b"import os")
    place.remove(version + "serving.properties")

    with reader(place) as published:
        problems = verify_published(published, ignore)

    assert [(p.path, p.code) for p in problems] == [
        ("model/empty", "publish.content-wrong"),
        ("model/foreign.py", "publish.file-foreign"),
        (LARGE, "publish.content-wrong"),
        ("serving.properties", "publish.file-missing"),
    ]


def test_publish_tells_of_a_foreign_file(place: Destination, packed: Packed) -> None:
    """A foreign file below the version is told and left alone."""
    place.put(f"nm/{packed.hexadecimal}/foreign", b"1")
    recorder = Recorder()

    place.publish(packed, emit=recorder)

    assert recorder.codes() == ["publish.foreign-file"]
    assert f"nm/{packed.hexadecimal}/foreign" in place.stored()


def test_changed_manifest_is_noticed(place: Destination, packed: Packed) -> None:
    """A manifest that is not the one its prefix names is a problem, not a base."""
    place.publish(packed)
    place.put(f"nm/{packed.hexadecimal}/manifest.json", b'{"files": []}')

    with reader(place) as published:
        problems = verify_published(published, ignore)

    assert [problem.code for problem in problems] == ["publish.manifest-mismatch"]


@pytest.mark.parametrize("pointer", [b"", b"[]", b'{"manifest": "sha256:../x"}'])
def test_broken_pointer_is_refused(
    place: Destination, packed: Packed, pointer: bytes
) -> None:
    """A `latest.json` that points nowhere is an error, never followed."""
    place.publish(packed)
    place.put("nm/latest.json", pointer)

    with pytest.raises(VerifyFailed) as caught:
        reader(place)

    assert caught.value.code == "publish.latest-invalid"


def test_nothing_there_is_said(place: Destination) -> None:
    """Opening what was never published names the place."""
    with pytest.raises(RemoteFailed) as caught:
        reader(place)

    assert caught.value.code == "remote.not-found"
    assert place.spec.to in caught.value.message


def test_download_gives_the_tree_back(
    place: Destination, packed: Packed, tmp_path: Path
) -> None:
    """What is fetched is exactly what was packed, with the files beside."""
    (tmp_path / "verify.json").write_text("{}")
    place.publish(packed, extra={"verify.json": tmp_path / "verify.json"})
    dest = tmp_path / "got"

    uri = download(
        place.spec.to + "/nm", dest, place.settings, ignore, access=place.spec
    )

    got = {
        p.relative_to(dest).as_posix(): p.read_bytes()
        for p in dest.rglob("*")
        if p.is_file()
    }
    beside = {"manifest.json": packed.manifest, "verify.json": b"{}"}
    assert got == {**packed.files, **beside}
    assert uri.endswith(packed.hexadecimal + "/")


def test_a_fetched_artifact_can_be_published_again(
    place: Destination, packed: Packed, tmp_path: Path
) -> None:
    """What was fetched, records beside included, is published elsewhere the same."""
    (tmp_path / "verify.json").write_text("{}")
    place.publish(packed, extra={"verify.json": tmp_path / "verify.json"})
    dest = tmp_path / "got"
    download(place.spec.to + "/nm", dest, place.settings, ignore, access=place.spec)

    place.publish(replace(packed, tree=dest), name="copy")

    keys = place.stored()
    assert {key[3:] for key in keys if key.startswith("nm/")} == {
        key[5:] for key in keys if key.startswith("copy/")
    }
    assert f"copy/{packed.hexadecimal}/verify.json" in keys


def test_download_refuses_a_used_folder(
    place: Destination, packed: Packed, tmp_path: Path
) -> None:
    """Nothing of the user's is mixed with an artifact."""
    place.publish(packed)
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "mine").write_text("mine")

    with pytest.raises(UsageInvalid) as caught:
        download(
            place.spec.to + "/nm",
            tmp_path / "got",
            place.settings,
            ignore,
            access=place.spec,
        )

    assert caught.value.code == "publish.not-empty"


def test_download_refuses_wrong_content_then_goes_on(
    place: Destination, packed: Packed, tmp_path: Path
) -> None:
    """A wrong file is not kept; once it is right, the same folder is completed."""
    place.publish(packed)
    key = f"nm/{packed.hexadecimal}/{LARGE}"
    place.put(key, b"x" * len(packed.files[LARGE]))
    arguments: Any = (place.spec.to + "/nm", tmp_path / "got", place.settings, ignore)
    with pytest.raises(VerifyFailed) as caught:
        download(*arguments, access=place.spec)
    assert caught.value.code == "publish.content-wrong"
    assert not (tmp_path / "got" / "manifest.json").exists()
    place.put(key, packed.files[LARGE])

    download(*arguments, access=place.spec)

    assert (tmp_path / "got" / LARGE).read_bytes() == packed.files[LARGE]
    assert (tmp_path / "got" / "manifest.json").read_bytes() == packed.manifest


def test_racing_publishers_of_one_artifact_agree(
    place: Destination, packed: Packed
) -> None:
    """Publishers of the same artifact at the same time all succeed."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            place.publish(packed)
        except BaseException as error:  # noqa: BLE001 -- told to the main thread
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    with reader(place) as published:
        assert verify_published(published, ignore) == ()


def test_racing_versions_never_lose_silently(
    place: Destination, tmp_path: Path
) -> None:
    """Whoever does not move the pointer in a race is told; all versions are whole."""
    versions = [pack(tmp_path / str(seed), seed=seed) for seed in range(4)]
    codes: list[str] = []

    def run(packed: Packed) -> None:
        try:
            place.publish(packed)
        except PublishFailed as error:
            codes.append(error.code)

    threads = [threading.Thread(target=run, args=(packed,)) for packed in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(codes) <= {"publish.latest-moved"}
    assert len(codes) < len(versions)
    for packed in versions:
        with reader(place, f"/nm/{packed.hexadecimal}") as published:
            assert verify_published(published, ignore) == ()
