"""The pure parts of publishing: checksums, names, documents, meanings of faults."""

from __future__ import annotations

import base64
import json
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.digest import Digest
from lmi_build.errors import LmiBuildError, RemoteFailed, UsageInvalid, VerifyFailed
from lmi_build.publishers.destination import make_place
from lmi_build.publishers.folder import FolderPlace
from lmi_build.publishers.layout import (
    latest_document,
    parse_files,
    parse_latest,
    version_prefix,
)
from lmi_build.remote.crc import CRC32, best_checksum, crc64nvme
from lmi_build.remote.s3_client import endpoint_of, make_client
from lmi_build.remote.s3_faults import explain
from lmi_build.remote.s3_parts import part_length, part_table
from lmi_build.units import MiB
from lmi_build.values.publish import MIN_PART_BYTES, Transfer
from lmi_build.values.recipe import PublishSpec
from lmi_build.values.settings import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_HEX = "0123456789abcdef" * 4
_ROOM = Path(__file__).parents[2] / "builder" / "lmi_build"
_SPEC = PublishSpec(to="s3://bucket/prefix")


def slow_crc64(data: bytes | memoryview, value: int) -> int:
    """CRC-64/NVME, bit by bit from its definition."""
    value ^= (1 << 64) - 1
    for byte in bytes(data):
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x9A6C9329AC4BC9B5 if value & 1 else 0)
    return value ^ (1 << 64) - 1


def test_crc64nvme_has_its_check_value() -> None:
    """The catalogue's check value of CRC-64/NVME over `123456789`."""
    assert slow_crc64(b"123456789", 0) == 0xAE8B14860A799888


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_join_is_the_checksum_of_the_whole(parts: list[bytes]) -> None:
    """Joined checksums of parts are the checksum of the concatenation."""
    whole = b"".join(parts)
    for checksum in (CRC32, crc64nvme(slow_crc64)):
        summed = [(checksum.update(memoryview(p), 0), len(p)) for p in parts]

        assert checksum.join(summed) == checksum.update(memoryview(whole), 0)


def test_join_of_long_parts() -> None:
    """The same for parts as long as real ones."""
    parts = [b"a" * (5 * MiB), b"b" * (5 * MiB), b"c" * 7]

    joined = CRC32.join([(zlib.crc32(part), len(part)) for part in parts])

    assert joined == zlib.crc32(b"".join(parts))


def test_encoded_as_s3_writes_it() -> None:
    """Big-endian bytes in base 64."""
    assert CRC32.encode(zlib.crc32(b"x")) == base64.b64encode(
        zlib.crc32(b"x").to_bytes(4, "big")
    ).decode("ascii")
    assert best_checksum().name in {"CRC32", "CRC64NVME"}


@given(st.integers(1, 6 * 1024**4))
def test_parts_cover_the_file(num_bytes: int) -> None:
    """Any S3 object is covered by at most 10,000 parts of one length."""
    part_bytes = part_length(num_bytes, 16 * MiB)

    assert part_bytes >= 16 * MiB
    assert -(-num_bytes // part_bytes) <= 10_000
    if num_bytes < 1000 * 16 * MiB:
        table = list(part_table(num_bytes, part_bytes))
        assert sum(length for _, length in table) == num_bytes
        assert [number for number, _ in table] == list(range(1, len(table) + 1))


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"{}",
        b'{"files": 1}',
        b'{"files": [1]}',
        b'{"files": [{"path": "a"}]}',
        json.dumps({"files": [{"path": "../a", "size": 1, "sha256": _HEX}]}).encode(),
        json.dumps({"files": [{"path": "a", "size": -1, "sha256": _HEX}]}).encode(),
        json.dumps({"files": [{"path": "a", "size": True, "sha256": _HEX}]}).encode(),
        json.dumps({"files": [{"path": "a", "size": 1, "sha256": "x"}]}).encode(),
        json.dumps({"files": [{"path": "a", "size": 1, "sha256": _HEX}] * 2}).encode(),
        json.dumps(
            {"files": [{"path": "manifest.json", "size": 1, "sha256": _HEX}]}
        ).encode(),
        b"\xff\xfe",
    ],
)
def test_bad_manifests_are_refused(manifest: bytes) -> None:
    """Whatever is wrong with a manifest, it is one clear error."""
    with pytest.raises(VerifyFailed) as caught:
        parse_files(manifest, where="here")

    assert caught.value.code == "publish.manifest-invalid"
    assert "here" in caught.value.message


def test_pointer_round_trip() -> None:
    """What `latest.json` says is what was written."""
    digest = Digest(f"sha256:{_HEX}")

    assert parse_latest(latest_document(digest), where="x") == digest
    assert json.loads(latest_document(digest))["prefix"] == f"{_HEX}/"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".hidden", "a b"])
def test_names_are_plain(name: str) -> None:
    """A name cannot move a version elsewhere."""
    with pytest.raises(ValueError, match="not an artifact name"):
        version_prefix(name, f"sha256:{_HEX}")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3://UPPER/x",
        "s3://ab/x",
        "s3://bucket//x",
        "s3://bucket/a/../b",
        "http://bucket/x",
        "gs://bucket/x",
    ],
)
def test_bad_destinations_are_usage_errors(uri: str, tmp_path: Path) -> None:
    """A destination that cannot be one is refused without the network."""
    with pytest.raises(UsageInvalid) as caught:
        make_place(uri, _SPEC, Settings(cache_dir=tmp_path), Transfer())

    assert caught.value.code == "publish.bad-destination"
    assert uri in caught.value.message


def test_a_path_is_a_folder(tmp_path: Path) -> None:
    """What has no scheme is a folder."""
    place = make_place(str(tmp_path), _SPEC, Settings(cache_dir=tmp_path), Transfer())

    assert isinstance(place, FolderPlace)
    assert place.uri("nm/") == f"{tmp_path}/nm/"


def test_the_recipe_s_endpoint_wins(tmp_path: Path) -> None:
    """Recipe, then the S3 variable, then the general one."""
    aws = {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"}
    settings = Settings(cache_dir=tmp_path, secrets={"aws": aws})

    recipe = PublishSpec(to="s3://bucket", endpoint_url="http://c")

    assert endpoint_of(recipe, settings) == "http://c"
    assert endpoint_of(_SPEC, settings) == "http://b"
    assert endpoint_of(_SPEC, Settings(cache_dir=tmp_path)) is None


def test_offline_refuses_a_bucket(tmp_path: Path) -> None:
    """Without the network only a server on this machine may be asked."""
    settings = Settings(cache_dir=tmp_path, offline=True)
    with pytest.raises(RemoteFailed) as caught:
        make_client(_SPEC, settings, Transfer())
    assert caught.value.code == "remote.offline"

    local = PublishSpec(to="s3://bucket", endpoint_url="http://127.0.0.1:1")

    make_client(local, settings, Transfer()).close()


def test_unknown_profile_is_no_credentials(tmp_path: Path) -> None:
    """A profile that is not configured is named."""
    settings = Settings(
        cache_dir=tmp_path, secrets={"aws": {"AWS_PROFILE": "no-such-profile"}}
    )

    with pytest.raises(RemoteFailed) as caught:
        make_client(_SPEC, settings, Transfer())

    assert caught.value.code == "remote.no-credentials"
    assert "no-such-profile" in caught.value.message


def client_error(code: str, status: int = 400) -> Exception:
    from botocore.exceptions import ClientError

    response: Any = {
        "Error": {"Code": code, "Message": "why."},
        "ResponseMetadata": {"HTTPStatusCode": status, "RetryAttempts": 2},
    }
    error: Exception = ClientError(response, "PutObject")
    return error


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("NoSuchBucket", 404, "remote.no-bucket"),
        ("ExpiredToken", 403, "remote.expired-token"),
        ("SignatureDoesNotMatch", 403, "remote.bad-credentials"),
        ("RequestTimeTooSkewed", 403, "remote.clock-skew"),
        ("KMS.DisabledException", 400, "remote.kms-refused"),
        ("AuthorizationHeaderMalformed", 400, "remote.wrong-region"),
        ("Whatever", 500, "remote.server-error"),
        ("Whatever", 400, "remote.refused"),
    ],
)
def test_every_fault_has_a_meaning_and_a_way_out(
    code: str, status: int, expected: str
) -> None:
    """S3's code becomes ours, with its message, the tries, and a hint."""
    error = explain(client_error(code, status), uri="s3://b/k", access=_SPEC)

    assert error.code == expected
    assert error.message == f"s3://b/k: {code}: why (after 3 tries)"
    assert error.hints


def test_no_credentials_is_told() -> None:
    """Botocore's own faults have a meaning too."""
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError

    missing = explain(NoCredentialsError(), uri="s3://b/k", access=_SPEC)
    gone = explain(
        EndpointConnectionError(endpoint_url="http://x"), uri="s3://b/k", access=_SPEC
    )

    assert (missing.code, gone.code) == ("remote.no-credentials", "remote.unreachable")
    assert isinstance(missing, LmiBuildError)


@pytest.mark.parametrize("room", ["publish", "remote"])
def test_every_code_is_documented(room: str) -> None:
    """Each code that the publishers raise has a title, a cause and a fix."""
    sources = [*_ROOM.glob("publishers/*.py")]
    text = "\n".join(path.read_text() for path in sources)
    raised = set(re.findall(rf'"({room}\.[a-z-]+)"', text))
    pages = tomllib.loads((_ROOM / f"catalog/errors/{room}.toml").read_text())

    assert raised
    assert raised <= set(pages)
    for page in pages.values():
        assert set(page) == {"title", "cause", "fix"}
        assert all(page.values())


def test_parts_below_s3_s_least_are_refused() -> None:
    """A part length that S3 would refuse at the end is refused at the start."""
    with pytest.raises(ValueError, match="5 MiB"):
        Transfer(part_bytes=MIN_PART_BYTES - 1)


def test_modules_stay_light() -> None:
    """Importing the publishers imports no AWS library."""
    import subprocess

    code = (
        "import sys, lmi_build.publishers.destination, lmi_build.publishers.reader, "
        "lmi_build.publishers.download, lmi_build.publishers.check, "
        "lmi_build.remote.s3_place; "
        "print([m for m in ('boto3', 'botocore', 'awscrt') if m in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )

    assert done.stdout.strip() == "[]"
