"""A log in S3, read as it comes or in parts; nothing is stored."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, TypeVar

from lmi_build.errors import RemoteFailed
from lmi_build.sources.download import Dropped
from lmi_build.sources.s3 import split_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lmi_build.values.settings import Settings

_T = TypeVar("_T")
# Attempts in a row without a byte.
_MOST_STUCK = 3


class S3Log(io.RawIOBase):
    """
    One version of one object.

    Args:
        source: `s3://bucket/key`.
        settings: Credentials and endpoint.

    Raises:
        SourceInvalid: There is no such object, or it is no address.
        RemoteFailed: S3 refused or vanished; `traffic.offline`.
    """

    def __init__(self, source: str, settings: Settings) -> None:
        super().__init__()
        if settings.offline:
            raise RemoteFailed(
                f"`{source}` needs the network",
                code="traffic.offline",
                hints=("leave out `--offline`, or copy the log here",),
            )
        from lmi_build.sources.s3_client import S3Client

        bucket, self._key = split_url(source)
        self._source = source
        self._client = S3Client(bucket, settings=settings)
        self._at = 0
        self._size, self._etag, _ = self._again(lambda: self._client.head(self._key))

    def blocks(self) -> Iterator[bytes]:
        """All bytes; a dropped connection goes on where it stopped."""
        at = stuck = 0
        while at < self._size:
            before = at
            error: Dropped | None = None
            try:
                start, chunks = self._client.open(
                    self._key, offset=at, count=None, etag=self._etag
                )
                for chunk in chunks:
                    fresh = chunk[max(0, at - start) :]
                    start += len(chunk)
                    at += len(fresh)
                    yield fresh
            except Dropped as dropped:
                error = dropped
            stuck = stuck + 1 if at == before else 0
            if stuck == _MOST_STUCK:
                raise self._dropped(error or "nothing came") from error

    def _again(self, action: Callable[[], _T]) -> _T:
        for left in reversed(range(_MOST_STUCK)):
            try:
                return action()
            except Dropped as error:
                if not left:
                    raise self._dropped(error) from error
        raise AssertionError

    def _dropped(self, error: object) -> RemoteFailed:
        return RemoteFailed(
            f"the connection for `{self._source}` dropped {_MOST_STUCK} times: {error}",
            code="traffic.dropped",
            hints=("try again; or copy the log here with `aws s3 cp`",),
        )

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}
        self._at = base[whence] + offset
        return self._at

    def tell(self) -> int:
        """Where the next byte is read from."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read a part by one request."""
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        data = self._again(
            lambda: self._client.read(
                self._key, offset=self._at, count=count, etag=self._etag
            )
        )
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
