"""
One file on its way up: read once, hashed and summed while it is read.

A file thread reads a part, feeds SHA-256 (of the file) and a CRC (of the part) while
the megabyte is still in the cache, and hands the part to the pool that sends it. S3
checks the CRC of every part and, at the end, of the whole. The upload is completed
only if the SHA-256 is the manifest's, so an object exists only if it is right.

| left by a killed attempt             | what happens                               |
| ------------------------------------ | ------------------------------------------ |
| upload with parts like ours          | those parts are hashed here, not sent again |
| upload with another checksum or size | a new one is begun; the old one is aborted |
"""

from __future__ import annotations

import base64
import hashlib
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING, Any

from lmi_build.remote.aws_faults import error_code
from lmi_build.remote.place import Stopped, content_differs
from lmi_build.remote.s3_parts import (
    Buffers,
    Listed,
    Once,
    Upload,
    part_length,
    part_table,
    slices,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from io import FileIO
    from pathlib import Path

    from lmi_build.remote.crc import Checksum
    from lmi_build.values.manifest import FileEntry

METADATA = "lmi-build-sha256"
# Damaged bytes are refused by S3 and sent again; botocore itself does not.
_DAMAGE_ATTEMPTS = 3
_DAMAGE = frozenset(
    {
        "BadDigest",
        "InvalidDigest",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
# Another publisher of the same bytes completed, aborted or overtook our upload.
_GONE = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder"})
# A conditional write met an object, or another conditional write.
_TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
_GONE_ATTEMPTS = 4


class _UploadGone(Exception):
    """Our upload is no longer ours; look again."""


@contextmanager
def _gone_is_told() -> Iterator[None]:
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if error_code(error) in _GONE | _TAKEN:
            raise _UploadGone from error
        raise


@dataclass(frozen=True, kw_only=True, slots=True)
class Uploader:
    """
    What all uploads to a bucket share.

    Args:
        client: S3 client.
        where: Parameters of every call: bucket and its expected owner.
        storing: Parameters of every call that makes an object: encryption, tags.
        checksum: CRC of parts.
        part_bytes: Length of a part.
        pool: Threads that send parts.
        buffers: Memory for parts.
        exclusive: Whether an object that is there already is left alone.
        stopped: Set when no further part may be begun.
    """

    client: Any
    where: Mapping[str, str]
    storing: Mapping[str, str]
    checksum: Checksum
    part_bytes: int
    pool: ThreadPoolExecutor
    buffers: Buffers
    exclusive: bool = False
    stopped: Event = field(default_factory=Event)

    def send(
        self,
        source: Path,
        key: str,
        entry: FileEntry,
        sent: Callable[[int], None],
        *,
        holds: Callable[[], bool],
    ) -> None:
        """
        Store a file; `holds` asks whether somebody else has done so meanwhile.

        Raises:
            PublishFailed: `publish.content-differs`.
            botocore.exceptions.ClientError: S3 refuses.
        """
        if entry.size > self.part_bytes:
            self._send_large(source, key, entry, sent, holds=holds)
            return
        try:
            self._send_whole(source, key, entry, sent, exclusive=self.exclusive)
        except _UploadGone:
            # What is there in its place has the name of this content.
            if not holds():
                self._send_whole(source, key, entry, sent, exclusive=False)

    def _send_large(
        self,
        source: Path,
        key: str,
        entry: FileEntry,
        sent: Callable[[int], None],
        *,
        holds: Callable[[], bool],
    ) -> None:
        told, fresh, exclusive = Once(sent), False, self.exclusive
        for attempt in range(1, _GONE_ATTEMPTS + 1):
            try:
                resumed = self._send_parts(
                    source, key, entry, told, fresh=fresh, exclusive=exclusive
                )
            except _UploadGone as gone:
                if holds():
                    if self.exclusive:  # ours may still be open beside theirs
                        self.abort_all(key)
                    return
                # What is there in its place has the name of this content.
                exclusive = False
                if attempt == _GONE_ATTEMPTS and gone.__cause__ is not None:
                    raise gone.__cause__ from None
            else:
                # Metadata is set when an upload begins: one that somebody else began
                # gives the right bytes without ours, and is done again.
                if not resumed or holds():
                    return
                fresh, exclusive = True, False

    def _send_whole(
        self,
        source: Path,
        key: str,
        entry: FileEntry,
        sent: Callable[[int], None],
        *,
        exclusive: bool,
    ) -> None:
        sha = hashlib.sha256()
        buffer = self.buffers.take(entry.size)
        try:
            with source.open("rb", buffering=0) as stream:
                length = 0
                for view in slices(stream, buffer):
                    sha.update(view)
                    length += len(view)
                whole = length == len(buffer) and not stream.read(1)
            if not whole or sha.hexdigest() != entry.sha256:
                raise content_differs(source, sha.hexdigest(), entry)
            self._retry_damage(
                self.client.put_object,
                Key=key,
                Body=buffer,
                ChecksumSHA256=base64.b64encode(sha.digest()).decode(),
                Metadata={METADATA: entry.sha256},
                **({"IfNoneMatch": "*"} if exclusive else {}),
                **self.where,
                **self.storing,
            )
        finally:
            self.buffers.give(buffer)
        if entry.size:
            sent(entry.size)

    def _send_parts(
        self,
        source: Path,
        key: str,
        entry: FileEntry,
        told: Once,
        *,
        fresh: bool,
        exclusive: bool,
    ) -> bool:
        """Returns whether an upload in progress was taken up."""
        resumed = None if fresh else self._resume(key)
        upload = resumed or self._begin(key, entry)
        part_bytes = part_length(entry.size, self.part_bytes)
        sha = hashlib.sha256()
        futures: list[Future[dict[str, Any]]] = []
        summed: list[tuple[int, int]] = []
        failed = Event()
        try:
            with source.open("rb", buffering=0) as stream:
                for number, num_bytes in part_table(entry.size, part_bytes):
                    if self.stopped.is_set():
                        raise Stopped
                    if failed.is_set():
                        break
                    buffer, crc = self._read_part(stream, num_bytes, sha)
                    summed.append((crc, num_bytes))
                    future = self.pool.submit(
                        self._send_part, key, upload, number, buffer, crc, told
                    )
                    future.add_done_callback(
                        lambda f: failed.set() if f.exception() else None
                    )
                    futures.append(future)
                whole = not stream.read(1)
        finally:
            wait(futures)
        parts = [future.result() for future in futures]
        if not whole or sha.hexdigest() != entry.sha256:
            self._abort(key, upload.upload_id)
            raise content_differs(source, sha.hexdigest(), entry)
        crc = self.checksum.join(summed)
        self._complete(key, upload, parts, crc, entry.size, exclusive=exclusive)
        return resumed is not None

    def _read_part(
        self, stream: FileIO, num_bytes: int, sha: hashlib._Hash
    ) -> tuple[bytearray, int]:
        """The next part and its CRC; a file that became shorter gives zeros."""
        buffer = self.buffers.take(num_bytes)
        try:
            crc = length = 0
            for view in slices(stream, buffer):
                sha.update(view)
                crc = self.checksum.update(view, crc)
                length += len(view)
            if length < num_bytes:
                # The SHA-256 is already another, so the upload will be aborted.
                rest = memoryview(bytes(num_bytes - length))
                buffer[length:] = rest
                crc = self.checksum.update(rest, crc)
        except BaseException:
            self.buffers.give(buffer)
            raise
        return buffer, crc

    def _send_part(
        self,
        key: str,
        upload: Upload,
        number: int,
        buffer: bytearray,
        crc: int,
        told: Once,
    ) -> dict[str, Any]:
        try:
            encoded = self.checksum.encode(crc)
            etag = self._matching_etag(upload.parts.get(number), buffer, encoded)
            if etag is None:
                answer = self._retry_damage(
                    self.client.upload_part,
                    Key=key,
                    UploadId=upload.upload_id,
                    PartNumber=number,
                    Body=buffer,
                    **{self.checksum.field: encoded},
                    **self.where,
                )
                etag = answer["ETag"]
        finally:
            self.buffers.give(buffer)
        told.tell(number, len(buffer))
        return {"PartNumber": number, "ETag": etag, self.checksum.field: encoded}

    def _matching_etag(
        self, listed: Listed | None, buffer: bytearray, encoded: str
    ) -> str | None:
        """The tag of a part that S3 already has, if it is this one."""
        if listed is None or listed.num_bytes != len(buffer):
            return None
        if listed.checksum is not None:
            return listed.etag if listed.checksum == encoded else None
        # A server that does not list checksums: the tag of a plain part is its MD5.
        md5 = hashlib.md5(buffer, usedforsecurity=False).hexdigest()
        return listed.etag if listed.etag.strip('"') == md5 else None

    def _begin(self, key: str, entry: FileEntry) -> Upload:
        answer = self.client.create_multipart_upload(
            Key=key,
            ChecksumAlgorithm=self.checksum.name,
            ChecksumType="FULL_OBJECT",
            Metadata={METADATA: entry.sha256},
            **self.where,
            **self.storing,
        )
        return Upload(upload_id=answer["UploadId"])

    def _resume(self, key: str) -> Upload | None:
        """The upload of this key that has most, if one was begun as we would."""
        best: Upload | None = None
        for row in self.unfinished(key):
            same = row.get("ChecksumAlgorithm", self.checksum.name)
            if row["Key"] != key or same != self.checksum.name:
                continue
            try:
                parts = self._listed(key, row["UploadId"])
            except _UploadGone:
                continue
            if best is None or len(parts) > len(best.parts):
                best = Upload(upload_id=row["UploadId"], parts=parts)
        return best

    def unfinished(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Uploads in progress of keys that begin so."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(
            Prefix=prefix, **self.where
        )
        for page in pages:
            yield from page.get("Uploads", [])

    def _listed(self, key: str, upload_id: str) -> dict[int, Listed]:
        with _gone_is_told():
            pages = list(
                self.client.get_paginator("list_parts").paginate(
                    Key=key, UploadId=upload_id, **self.where
                )
            )
        return {
            part["PartNumber"]: Listed(
                num_bytes=part["Size"],
                etag=part["ETag"],
                checksum=part.get(self.checksum.field),
            )
            for page in pages
            for part in page.get("Parts", [])
        }

    def _complete(
        self,
        key: str,
        upload: Upload,
        parts: list[dict[str, Any]],
        crc: int,
        num_bytes: int,
        *,
        exclusive: bool,
    ) -> None:
        with _gone_is_told():
            self.client.complete_multipart_upload(
                Key=key,
                UploadId=upload.upload_id,
                MultipartUpload={"Parts": parts},
                ChecksumType="FULL_OBJECT",
                MpuObjectSize=num_bytes,
                **{self.checksum.field: self.checksum.encode(crc)},
                **({"IfNoneMatch": "*"} if exclusive else {}),
                **self.where,
            )

    def _abort(self, key: str, upload_id: str) -> None:
        """End an upload; that somebody else ended it is as good."""
        try:
            with _gone_is_told():
                self.client.abort_multipart_upload(
                    Key=key, UploadId=upload_id, **self.where
                )
        except _UploadGone:
            return

    def abort_all(self, prefix: str) -> None:
        """End every upload in progress below a prefix."""
        for row in list(self.unfinished(prefix)):
            self._abort(row["Key"], row["UploadId"])

    def _retry_damage(self, call: Callable[..., Any], **params: Any) -> Any:
        from botocore.exceptions import ClientError

        for left in range(_DAMAGE_ATTEMPTS - 1, -1, -1):
            try:
                with _gone_is_told():
                    return call(**params)
            except ClientError as error:
                if error_code(error) not in _DAMAGE or not left:
                    raise
        raise AssertionError("the last attempt returns or raises")
