"""
Talk to S3: one client, one place where its answers become our errors.

Identity of an object: its stored SHA-256 when the uploader asked S3 to keep one over
the whole object, else `s3-etag:<etag>:<size>`. An ETag names one version of the
object without saying anything about its bytes; every read carries `If-Match`, so a
replaced object is noticed, though its bytes cannot be checked afterwards.
"""

from __future__ import annotations

import base64
import binascii
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from lmi_build.errors import LmiBuildError, RemoteFailed, SourceInvalid
from lmi_build.remote.aws import make_session, s3_endpoint
from lmi_build.sources.download import Dropped

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from lmi_build.values.settings import Settings

# What a drop can lose of bytes that had already arrived.
_CHUNK_BYTES = 64 << 10
_TIMEOUT_SECONDS = 30
_SHA256_BYTES = 32
_MISSING_KEY = frozenset({"404", "NoSuchKey", "NotFound"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_BAD_KEYS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"})
_CHANGED = frozenset({"412", "PreconditionFailed"})
_BUSY = frozenset({"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout"})
_BUSY_STATUS = frozenset({429, 500, 502, 503, 504})


class S3Client:
    """
    Reads from one bucket.

    Args:
        bucket: Its name.
        settings: Credentials and endpoint are taken from here when they are here,
            else from the places where AWS tools look (profile, role).
    """

    def __init__(self, bucket: str, *, settings: Settings) -> None:
        from botocore.config import Config

        self.bucket = bucket
        endpoint = s3_endpoint(settings)
        self.endpoint = endpoint or ""
        with self.errors(""):
            session = make_session(settings)
        self._client = session.client(
            "s3",
            endpoint_url=endpoint,
            config=Config(
                connect_timeout=_TIMEOUT_SECONDS,
                read_timeout=_TIMEOUT_SECONDS,
                retries={"mode": "standard", "total_max_attempts": 3},
                s3={"addressing_style": "path"} if endpoint else None,
            ),
        )

    def list_objects(
        self, prefix: str, *, nested: bool = False
    ) -> dict[str, tuple[int, str]]:
        """
        Objects below a prefix.

        Args:
            prefix: What their keys begin with.
            nested: Not only those directly below it.

        Returns:
            Name after the prefix to (bytes, ETag).
        """
        found: dict[str, tuple[int, str]] = {}
        with self.errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, Delimiter="" if nested else "/"
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    name = entry["Key"][len(prefix) :]
                    if name:
                        found[name] = (entry["Size"], entry["ETag"].strip('"'))
        return found

    def head(self, key: str) -> tuple[int, str, str]:
        """Bytes, ETag and digest of an object."""
        with self.errors(key):
            answer = self._client.head_object(
                Bucket=self.bucket, Key=key, ChecksumMode="ENABLED"
            )
        size, etag = int(answer["ContentLength"]), answer["ETag"].strip('"')
        return size, etag, _digest(answer, etag, size)

    def open(
        self, key: str, *, offset: int, count: int | None, etag: str
    ) -> tuple[int, Generator[bytes, None, None]]:
        """Where an answer starts, and its bytes, if the object is still `etag`."""
        last = "" if count is None else str(offset + count - 1)
        wanted = {"Range": f"bytes={offset}-{last}"} if offset or last else {}
        if etag:
            wanted["IfMatch"] = f'"{etag}"'
        with self.errors(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=key, **wanted)
        start = _start(answer) if "Range" in wanted else 0
        return start, self._iterate(answer["Body"], key)

    def _iterate(self, body: Any, key: str) -> Generator[bytes, None, None]:
        with closing(body), self.errors(key):
            yield from body.iter_chunks(_CHUNK_BYTES)

    def read(self, key: str, *, offset: int, count: int, etag: str) -> bytes:
        """Part of an object."""
        start, chunks = self.open(key, offset=offset, count=count, etag=etag)
        data = bytearray()
        with closing(chunks):
            for chunk in chunks:
                data += chunk
                if len(data) >= offset - start + count:
                    break
        return bytes(data[offset - start : offset - start + count])

    @contextmanager
    def errors(self, key: str) -> Iterator[None]:
        """Turn what botocore raises into `Dropped` or the user's error."""
        from botocore import exceptions

        try:
            yield
        except (LmiBuildError, Dropped):
            raise
        except exceptions.ClientError as error:
            raise self._explain(error, key) from error
        except (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.ProfileNotFound,
            exceptions.TokenRetrievalError,
        ) as error:
            raise RemoteFailed(
                f"no usable AWS credentials for `s3://{self.bucket}/{key}`:"
                f" {type(error).__name__}",
                code="source.s3-denied",
                hints=("set AWS_PROFILE, or run `aws configure`",),
            ) from error
        except exceptions.ParamValidationError as error:
            raise SourceInvalid(
                f"`s3://{self.bucket}/{key}` is not a valid S3 address",
                code="source.bad-name",
                hints=("write `s3://bucket/prefix`",),
            ) from error
        except (exceptions.BotoCoreError, ConnectionError, TimeoutError) as error:
            raise Dropped(type(error).__name__) from error

    def _explain(self, error: Any, key: str) -> LmiBuildError | Dropped:
        answer = error.response
        code = str(answer.get("Error", {}).get("Code", ""))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        what = f"s3://{self.bucket}/{key}"
        if code in _BUSY or status in _BUSY_STATUS:
            return Dropped(f"{code or 'HTTP'} {status}")
        if code == "NoSuchBucket":
            return SourceInvalid(
                f"there is no bucket `{self.bucket}`",
                code="source.s3-missing",
                hints=("check its name and AWS_REGION: `aws s3 ls`",),
            )
        if code in _MISSING_KEY:
            return SourceInvalid(
                f"`{what}` does not exist",
                code="source.s3-missing",
                hints=(f"see what is there: `aws s3 ls s3://{self.bucket}/`",),
            )
        if code in _CHANGED:
            return SourceInvalid(
                f"`{what}` was replaced since the plan was made",
                code="source.changed",
                hints=("run the build again, so that it plans with the new content",),
            )
        if code in _EXPIRED:
            return RemoteFailed(
                f"the AWS session for `{what}` has expired",
                code="source.s3-expired",
                hints=("log in again: `aws sso login`, then run the build again",),
            )
        hint = "the role needs s3:ListBucket on the bucket and s3:GetObject below it"
        if code in _BAD_KEYS:
            hint = "the access key is wrong: run `aws sts get-caller-identity`"
        denied = status in {401, 403}
        return RemoteFailed(
            f"S3 answered {code or status} for `{what}`",
            code="source.s3-denied" if denied else "source.refused",
            hints=(hint if denied else "see the S3 documentation for that code",),
        )


def _start(answer: Any) -> int:
    # Some servers obey a range and answer 200; the header tells them from those that
    # ignore it.
    words = str(answer.get("ContentRange", "")).split()
    if len(words) == len(("bytes", "0-1/2")) and words[1].split("-")[0].isdigit():
        return int(words[1].split("-")[0])
    return 0


def _digest(answer: Any, etag: str, size: int) -> str:
    stored = answer.get("ChecksumSHA256")
    # A composite checksum is a hash of the parts' hashes and ends in `-<parts>`.
    if stored and answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
        try:
            raw = base64.b64decode(stored, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) == _SHA256_BYTES:
            return f"sha256:{raw.hex()}"
    return f"s3-etag:{etag}:{size}"
