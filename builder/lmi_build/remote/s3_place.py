"""A bucket as a destination."""

from __future__ import annotations

import base64
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from lmi_build.errors import PublishFailed
from lmi_build.remote.aws_faults import error_code
from lmi_build.remote.crc import best_checksum
from lmi_build.remote.place import Stored
from lmi_build.remote.s3_calls import METADATA, Calls
from lmi_build.remote.s3_client import make_client
from lmi_build.remote.s3_faults import explained
from lmi_build.remote.s3_parts import Buffers
from lmi_build.remote.s3_upload import Uploader
from lmi_build.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lmi_build.remote.access import Access
    from lmi_build.values.manifest import FileEntry
    from lmi_build.values.publish import Transfer
    from lmi_build.values.settings import Settings

# Each costs a part of memory; more gain nothing on one host.
_MAX_CONNECTIONS = 16
_MISSING = frozenset({"NoSuchKey", "404"})
_HAS_CHANGED = "PreconditionFailed"
# Two conditional writes met inside S3: neither won, both should try again.
_MET = "ConditionalRequestConflict"
_MET_ATTEMPTS = 5
_MET_PAUSE_SECONDS = 0.2


class S3Place:
    """
    A prefix of a bucket.

    Args:
        bucket: Its name.
        prefix: Key prefix, empty or with a trailing slash.
        access: Encryption, tags, owner, endpoint, region.
        settings: Credentials.
        transfer: Parts, parallelism, patience.
        exclusive: Whether an upload yields to one of the same content that came
            first (`If-None-Match`), for keys that are named by their content.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        access: Access,
        settings: Settings,
        transfer: Transfer,
        exclusive: bool = False,
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._access = access
        concurrency = transfer.concurrency or _default_concurrency()
        self._transfer = transfer
        self._client = make_client(
            access, settings, replace(transfer, concurrency=concurrency)
        )
        self._where = {"Bucket": bucket}
        if access.expected_bucket_owner:
            self._where["ExpectedBucketOwner"] = access.expected_bucket_owner
        self._pool = ThreadPoolExecutor(concurrency)
        self._calls = Calls(
            client=self._client,
            where=self._where,
            storing=_storing(access),
            checksum=best_checksum(),
        )
        self._uploader = Uploader(
            calls=self._calls,
            part_bytes=transfer.part_bytes,
            pool=self._pool,
            # One more is read while the others are sent.
            buffers=Buffers(concurrency + 1, transfer.part_bytes),
            exclusive=exclusive,
        )
        self.num_files_at_once = concurrency

    def uri(self, key: str) -> str:
        """`s3://bucket/prefix/key`."""
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def listing(self, prefix: str) -> Mapping[str, int]:
        """Objects below a prefix."""
        base = self._prefix + prefix
        with explained(self.uri(prefix), self._access):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Prefix=base, **self._where
            )
            return {
                row["Key"][len(base) :]: row["Size"]
                for page in pages
                for row in page.get("Contents", [])
            }

    def holds(self, key: str, entry: FileEntry) -> bool:
        """
        Whether length, our metadata and S3's own SHA-256 (when kept) are the entry's.

        Our metadata is enough: it becomes visible with the object, and an upload is
        completed only after the content was hashed.
        """
        from botocore.exceptions import ClientError

        with explained(self.uri(key), self._access):
            try:
                head = self._client.head_object(
                    Key=self._prefix + key, ChecksumMode="ENABLED", **self._where
                )
            except ClientError as error:
                if error_code(error) in _MISSING:
                    return False
                raise
        metadata = {k.lower(): v for k, v in head.get("Metadata", {}).items()}
        kept = head.get("ChecksumSHA256")
        # A composite checksum (`...-2`) is that of parts, not of the content.
        if kept and "-" not in kept and base64.b64decode(kept).hex() != entry.sha256:
            return False
        same = metadata.get(METADATA) == entry.sha256
        if not same or head["ContentLength"] != entry.size:
            return False
        self._check_encryption(key, head)
        return True

    def _check_encryption(self, key: str, head: Mapping[str, Any]) -> None:
        found = head.get("ServerSideEncryption", "none")
        if self._access.kms_key_id and not str(found).startswith("aws:kms"):
            raise PublishFailed(
                f"{self.uri(key)} is encrypted with `{found}`, the recipe asks for "
                f"`aws:kms` with {self._access.kms_key_id}",
                code="publish.not-encrypted",
                hints=(
                    (
                        "publish under another prefix: objects here were stored "
                        "without the key, or the server ignores it"
                    ),
                ),
            )

    def send(
        self, source: Path, key: str, entry: FileEntry, sent: Callable[[int], None]
    ) -> None:
        """Upload, in parts when it is long."""
        with explained(self.uri(key), self._access):
            self._uploader.send(
                source,
                self._prefix + key,
                entry,
                sent,
                holds=lambda: self.holds(key, entry),
            )

    def stop(self) -> None:
        """Uploads end after the parts in flight; S3 keeps those for the next run."""
        self._uploader.stopped.set()

    def go_on(self) -> None:
        """Allow uploads again after `stop`."""
        self._uploader.stopped.clear()

    def read(self, key: str) -> Stored | None:
        """A small object and its ETag."""
        from botocore.exceptions import BotoCoreError, ClientError

        with explained(self.uri(key), self._access):
            for left in range(self._transfer.attempts - 1, -1, -1):
                try:
                    answer = self._client.get_object(
                        Key=self._prefix + key, **self._where
                    )
                except ClientError as error:
                    if error_code(error) in _MISSING:
                        return None
                    raise
                try:
                    data = b"".join(_chunks(answer["Body"]))
                except BotoCoreError:
                    if not left:
                        raise
                else:
                    return Stored(
                        data=data, tag=answer["ETag"], age_seconds=_age_seconds(answer)
                    )
        raise AssertionError("the last attempt returns or raises")

    def stream(
        self, key: str, *, start: int = 0, count: int | None = None
    ) -> Iterator[bytes]:
        """
        The object's bytes; a broken connection is taken up where it broke.

        Args:
            key: Which object.
            start: First byte.
            count: How many bytes; None goes to the end.
        """
        from botocore.exceptions import BotoCoreError

        done, tag, failures = start, "", 0
        while True:
            last = "" if count is None else str(start + count - 1)
            ranged = {"Range": f"bytes={done}-{last}"} if done or last else {}
            same = {"IfMatch": tag} if tag else {}
            with explained(self.uri(key), self._access):
                answer = self._client.get_object(
                    Key=self._prefix + key, **ranged, **same, **self._where
                )
                tag = answer["ETag"]
                try:
                    for chunk in _chunks(answer["Body"]):
                        done += len(chunk)
                        failures = 0
                        yield chunk
                except BotoCoreError:
                    failures += 1
                    if failures >= self._transfer.attempts:
                        raise
                else:
                    return

    def create(self, key: str, data: bytes) -> bool:
        """`If-None-Match: *`."""
        return self.put(key, data) is not None

    def swap(self, key: str, data: bytes, *, tag: str) -> bool:
        """`If-Match`."""
        return self.put(key, data, tag=tag) is not None

    def put(self, key: str, data: bytes, *, tag: str = "") -> str | None:
        """
        Write a new small object, or overwrite one that still has this tag.

        Returns:
            The new tag, or None when somebody came between.
        """
        from hashlib import sha256

        from botocore.exceptions import ClientError

        digest = sha256(data)
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        with explained(self.uri(key), self._access):
            for left in range(_MET_ATTEMPTS - 1, -1, -1):
                try:
                    answer = self._client.put_object(
                        Key=self._prefix + key,
                        Body=data,
                        ContentType="application/json",
                        ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
                        Metadata={METADATA: digest.hexdigest()},
                        **condition,
                        **self._where,
                        **_storing(self._access),
                    )
                except ClientError as error:
                    code = error_code(error)
                    # A swap of an object that was removed meanwhile gets a 404.
                    if code == _HAS_CHANGED or (tag and code in _MISSING):
                        return None
                    if code != _MET or not left:
                        raise
                    time.sleep(_MET_PAUSE_SECONDS)
                else:
                    return str(answer["ETag"])
        raise AssertionError("the last attempt returns or raises")

    def copy(self, source: str, key: str) -> None:
        """Copy an object inside the bucket, with its metadata; no bytes pass here."""
        with explained(self.uri(key), self._access):
            self._client.copy_object(
                Key=self._prefix + key,
                CopySource={"Bucket": self._bucket, "Key": self._prefix + source},
                **self._where,
                **_storing(self._access),
            )

    def remove(self, key: str) -> None:
        """Delete an object; that there is none is as good."""
        with explained(self.uri(key), self._access):
            self._client.delete_object(Key=self._prefix + key, **self._where)

    def tidy(self, prefix: str) -> None:
        """Abort uploads in progress below a prefix."""
        with explained(self.uri(prefix), self._access):
            self._calls.abort_all(self._prefix + prefix)

    def close(self) -> None:
        """End threads and connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()


def _default_concurrency() -> int:
    """One connection to S3 is slower than one core hashes; a few share each core."""
    return min(_MAX_CONNECTIONS, 4 * len(os.sched_getaffinity(0)))


def _age_seconds(answer: Mapping[str, Any]) -> float:
    """How old an object is by the server's own clock; ours may be wrong."""
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    now = parsedate_to_datetime(headers["date"])
    age: float = (now - answer["LastModified"]).total_seconds()
    return max(0.0, age)


def _chunks(body: Any) -> Iterator[bytes]:
    yield from body.iter_chunks(MiB)


def _storing(access: Access) -> dict[str, str]:
    """Parameters of every call that makes an object."""
    params: dict[str, str] = {}
    if access.kms_key_id:
        params |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": access.kms_key_id}
    if access.tags:
        params["Tagging"] = urlencode(access.tags)
    return params
