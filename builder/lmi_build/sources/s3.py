"""
Facts and bytes of a model in S3: a Hugging Face folder or one GGUF file.

A prefix is listed at each plan; headers are read again only when an ETag moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from lmi_build.errors import RemoteFailed, SourceInvalid
from lmi_build.sources.assemble import assemble, distil
from lmi_build.sources.gguf import read_gguf_header
from lmi_build.sources.gguf_facts import GGUF_NAME, facts_of_gguf, summarise_gguf
from lmi_build.sources.hub import retry
from lmi_build.sources.s3_client import S3Client
from lmi_build.sources.selection import MODULES, SENTENCE_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.sources.cache import FactsCache
    from lmi_build.values.model import FileFact, ModelFacts
    from lmi_build.values.recipe import ModelSpec
    from lmi_build.values.settings import Settings

_T = TypeVar("_T")


def split_url(source: str) -> tuple[str, str]:
    """
    Bucket and key of an `s3://` address.

    Raises:
        SourceInvalid: `source.bad-name`.
    """
    bucket, _, key = source.removeprefix("s3://").partition("/")
    if not bucket or any(part in {".", ".."} for part in key.split("/")):
        raise SourceInvalid(
            f"`{source}` is not an S3 address",
            code="source.bad-name",
            hints=("write `s3://bucket/prefix` or `s3://bucket/file.gguf`",),
        )
    return bucket, key


class _Bucket:
    """A client whose requests are retried."""

    def __init__(self, bucket: str, *, settings: Settings) -> None:
        self._client = S3Client(bucket, settings=settings)
        self.name = self._client.endpoint or f"s3://{bucket}"

    def list_model(self, prefix: str) -> dict[str, tuple[int, str]]:
        """Files of a model: those at the top, and a sentence encoder's settings."""
        found = self._again(lambda: self._client.list_objects(prefix))
        if MODULES not in found:
            return found
        every = self._again(lambda: self._client.list_objects(prefix, nested=True))
        return {
            name: what
            for name, what in every.items()
            if "/" not in name or SENTENCE_FILE.fullmatch(name)
        }

    def head(self, key: str) -> tuple[int, str, str]:
        return self._again(lambda: self._client.head(key))

    def read(self, key: str, *, offset: int, count: int, etag: str) -> bytes:
        return self._again(
            lambda: self._client.read(key, offset=offset, count=count, etag=etag)
        )

    def _again(self, action: Callable[[], _T]) -> _T:
        return retry(action, endpoint=self.name)


class S3Folder:
    """
    A prefix as a folder that can be read in parts.

    Args:
        source: The address, for messages.
        prefix: Key in front of every name.
        objects: Name to (bytes, ETag).
    """

    def __init__(
        self,
        source: str,
        bucket: _Bucket,
        prefix: str,
        objects: Mapping[str, tuple[int, str]],
    ) -> None:
        self.source = source
        self.sizes = {name: size for name, (size, _) in objects.items()}
        self._bucket = bucket
        self._prefix = prefix
        self._objects = objects

    def read_at(self, name: str, offset: int, count: int) -> bytes:
        """Up to `count` bytes of a file."""
        size, etag = self._objects[name]
        count = min(count, size - offset)
        if count <= 0:
            return b""
        return self._bucket.read(
            self._prefix + name, offset=offset, count=count, etag=etag
        )


def resolve_s3(spec: ModelSpec, *, settings: Settings, cache: FactsCache) -> ModelFacts:
    """
    Facts of a prefix or a GGUF object.

    Raises:
        SourceInvalid: Nothing is there, or what is there is refused.
        RemoteFailed: S3 refused or vanished.
    """
    bucket_name, key = split_url(spec.source)
    aws = settings.secrets.get("aws", {})
    endpoint = aws.get("AWS_ENDPOINT_URL_S3") or aws.get("AWS_ENDPOINT_URL") or ""
    last_key: JSONValue = ["s3-last", endpoint, spec.source]
    if settings.offline:
        record = cache.get(last_key)
        if record is None:
            raise RemoteFailed(
                f"`{spec.source}` was never resolved on this machine, and offline mode"
                " forbids asking S3",
                code="source.offline",
                hints=("run `lmi-build plan` once without `--offline`",),
            )
        return _facts(record, None, spec)
    bucket = _Bucket(bucket_name, settings=settings)
    if key.lower().endswith(".gguf"):
        record = _resolve_object(bucket, key, spec, endpoint=endpoint, cache=cache)
        folder = None
    else:
        prefix = key.rstrip("/") + "/" if key.rstrip("/") else ""
        objects = bucket.list_model(prefix)
        folder = S3Folder(spec.source, bucket, prefix, objects)
        record = _resolve_prefix(
            bucket, prefix, objects, folder, endpoint=endpoint, cache=cache
        )
    cache.put(last_key, record)
    return _facts(record, folder, spec)


def _facts(
    record: Mapping[str, Any], folder: S3Folder | None, spec: ModelSpec
) -> ModelFacts:
    if "summary" in record:
        return facts_of_gguf(
            record["summary"], kind="gguf", location=spec.source, spec=spec
        )
    remembered = _Remembered(spec.source, record["sizes"])
    return assemble(
        folder or remembered,
        record["distilled"],
        kind="s3",
        location=spec.source.rstrip("/"),
        revision="",
        spec=spec,
        digest=lambda name: str(record["digests"][name]),
    )


class _Remembered:
    """The sizes of a prefix seen earlier; its files cannot be read now."""

    def __init__(self, source: str, sizes: Mapping[str, int]) -> None:
        self.source = source
        self.sizes = sizes

    def read_at(self, name: str, offset: int, count: int) -> bytes:
        """Never called: everything that is read was distilled before."""
        msg = f"offline: {name} {offset} {count}"
        raise LookupError(msg)


def _resolve_object(
    bucket: _Bucket, key: str, spec: ModelSpec, *, endpoint: str, cache: FactsCache
) -> dict[str, Any]:
    size, etag, digest = bucket.head(key)
    identity: JSONValue = ["s3-gguf", endpoint, spec.source, etag, size]
    known = cache.get(identity)
    if isinstance(known, dict):
        return known
    name = key.rpartition("/")[2]
    header = read_gguf_header(
        lambda offset, count: bucket.read(key, offset=offset, count=count, etag=etag),
        size=size,
        name=name,
    )
    summary = summarise_gguf(header, file=name, size=size)
    record = {"summary": {**summary, "digest": digest}}
    cache.put(identity, record)
    return record


def _resolve_prefix(
    bucket: _Bucket,
    prefix: str,
    objects: Mapping[str, tuple[int, str]],
    folder: S3Folder,
    *,
    endpoint: str,
    cache: FactsCache,
) -> dict[str, Any]:
    if not objects:
        raise SourceInvalid(
            f"`{folder.source}` holds no objects",
            code="source.s3-missing",
            hints=("name the prefix that holds `config.json`",),
        )
    listing: JSONValue = {name: [size, tag] for name, (size, tag) in objects.items()}
    identity: JSONValue = ["s3-prefix", endpoint, folder.source, listing]
    known = cache.get(identity)
    if isinstance(known, dict):
        return known
    distilled = distil(folder)
    wanted = [
        name for part in ("weights", "others", "code") for name in distilled[part]
    ]
    record: dict[str, Any] = {
        "sizes": folder.sizes,
        "digests": {
            name: _object_digest(bucket, prefix + name, objects[name], folder.source)
            for name in wanted
        },
        "distilled": distilled,
    }
    cache.put(identity, record)
    return record


def _object_digest(
    bucket: _Bucket, key: str, listed: tuple[int, str], source: str
) -> str:
    size, etag, digest = bucket.head(key)
    if (size, etag) != listed:
        raise SourceInvalid(
            f"`{key}` below `{source}` changed while it was read",
            code="source.changed",
            hints=("wait until the upload has ended",),
        )
    return digest


class S3Remote:
    """
    Bytes for the fetch stage; see `download.Remote`.

    Args:
        location: `s3://bucket/prefix`, or the address of one GGUF object.
        settings: Credentials.
    """

    def __init__(self, location: str, *, settings: Settings) -> None:
        self.source = location
        bucket, self._key = split_url(location)
        self._client = S3Client(bucket, settings=settings)

    def stream(self, file: FileFact, offset: int) -> tuple[int, Iterator[bytes]]:
        """A file's bytes from `offset` on."""
        is_object = file.path == GGUF_NAME and self._key.lower().endswith(".gguf")
        prefix = f"{self._key}/" if self._key else ""
        key = self._key if is_object else prefix + file.path
        etag = ""
        if file.digest.startswith("s3-etag:"):
            etag = file.digest.removeprefix("s3-etag:").rpartition(":")[0]
        return self._client.open(key, offset=offset, count=None, etag=etag)
