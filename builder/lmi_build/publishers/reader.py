"""Reading an artifact where it lies: a packed folder, a version, or the latest one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.digest import Digest, digest_bytes
from lmi_build.errors import RemoteFailed, VerifyFailed
from lmi_build.publishers.destination import make_place
from lmi_build.publishers.layout import LATEST, is_version, parse_files, parse_latest
from lmi_build.values.manifest import MANIFEST_NAME, FileEntry
from lmi_build.values.publish import Transfer
from lmi_build.values.recipe import PublishSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from lmi_build.remote.place import Place
    from lmi_build.values.settings import Settings


class ArtifactReader:
    """
    One artifact, read only; close it, or use it in a `with`.

    Args:
        place: Where it lies.
        prefix: Key prefix of the artifact in the place, empty or with a slash.
        expected: What its manifest must hash to, when its name says so.
    """

    def __init__(self, place: Place, prefix: str, expected: Digest | None) -> None:
        self._place = place
        self._prefix = prefix
        self.expected = expected

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give connections back."""
        self._place.close()

    @property
    def uri(self) -> str:
        """The version's URI, with `latest.json` already followed."""
        return self._place.uri(self._prefix)

    def manifest_bytes(self) -> bytes:
        """
        The manifest, checked against the digest that its prefix names.

        Raises:
            RemoteFailed: `remote.not-found`: the version is not committed.
            VerifyFailed: `publish.manifest-mismatch`.
        """
        manifest = self.read(MANIFEST_NAME)
        found = digest_bytes(manifest)
        if self.expected is not None and found != self.expected:
            raise VerifyFailed(
                f"{self._place.uri(self._prefix + MANIFEST_NAME)} is {found}, "
                f"its prefix promises {self.expected}",
                code="publish.manifest-mismatch",
                hints=("do not serve it: publish the artifact again elsewhere",),
            )
        return manifest

    def entries(self) -> tuple[FileEntry, ...]:
        """The manifest's files."""
        return parse_files(self.manifest_bytes(), where=self.uri + MANIFEST_NAME)

    def read(self, path: str) -> bytes:
        """
        A whole small file.

        Raises:
            RemoteFailed: `remote.not-found`.
        """
        there = self._place.read(self._prefix + path)
        if there is None:
            raise RemoteFailed(
                f"there is no {self._place.uri(self._prefix + path)}",
                code="remote.not-found",
                hints=("an upload that has not ended has no manifest; publish again",),
            )
        return there.data

    def stream(self, path: str, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from an offset on, in pieces of at most 1 MiB."""
        return self._place.stream(self._prefix + path, start=start)

    def list(self) -> Mapping[str, int]:
        """Every file that lies there, with its length in bytes."""
        return self._place.listing(self._prefix)


def open_artifact(
    uri: str,
    settings: Settings,
    *,
    access: PublishSpec | None = None,
    transfer: Transfer | None = None,
) -> ArtifactReader:
    """
    Find the artifact that a URI means.

    Args:
        uri: A version prefix, a name whose `latest.json` is followed, or a folder
            that holds a packed artifact; `s3://` or a path.
        settings: Credentials and, from the environment, an endpoint.
        access: Endpoint, region and bucket owner, as in a recipe's `publish`.
        transfer: Patience.

    Raises:
        RemoteFailed: `remote.not-found` and whatever else the place says.
        UsageInvalid: `publish.bad-destination`.
        VerifyFailed: `publish.latest-invalid`.
    """
    uri = uri.rstrip("/") or "/"
    place = make_place(
        uri, access or PublishSpec(to=uri), settings, transfer or Transfer()
    )
    try:
        return _find(place, uri.rpartition("/")[2])
    except BaseException:
        place.close()
        raise


def open_folder(
    uri: str,
    settings: Settings,
    *,
    access: PublishSpec | None = None,
    transfer: Transfer | None = None,
) -> ArtifactReader:
    """
    Open what lies at a URI as it is: an artifact of ours, or anybody's folder.

    Args:
        uri: As for `open_artifact`; `latest.json` is followed where there is one.
        settings: Credentials and, from the environment, an endpoint.
        access: Endpoint, region and bucket owner.
        transfer: Patience.

    Raises:
        RemoteFailed: Whatever the place says.
        UsageInvalid: `publish.bad-destination`.
        VerifyFailed: `publish.latest-invalid`.
    """
    uri = uri.rstrip("/") or "/"
    place = make_place(
        uri, access or PublishSpec(to=uri), settings, transfer or Transfer()
    )
    try:
        if place.read(LATEST) is None:
            return ArtifactReader(place, "", None)
        return _find(place, uri.rpartition("/")[2])
    except BaseException:
        place.close()
        raise


def _find(place: Place, last_segment: str) -> ArtifactReader:
    if is_version(last_segment):
        return ArtifactReader(place, "", Digest(f"sha256:{last_segment}"))
    if place.read(MANIFEST_NAME) is not None:
        return ArtifactReader(place, "", None)
    latest = place.read(LATEST)
    if latest is None:
        raise RemoteFailed(
            f"{place.uri('')} holds neither {MANIFEST_NAME} nor {LATEST}",
            code="remote.not-found",
            hints=("name a published artifact, such as s3://bucket/prefix/NAME",),
        )
    digest = parse_latest(latest.data, where=place.uri(LATEST))
    return ArtifactReader(place, digest.removeprefix("sha256:") + "/", digest)
