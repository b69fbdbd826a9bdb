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
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING, Any

from lmi_build.remote.place import Stopped, content_differs
from lmi_build.remote.s3_calls import UploadGone
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
    from collections.abc import Callable
    from io import FileIO
    from pathlib import Path

    from lmi_build.remote.s3_calls import Calls
    from lmi_build.values.manifest import FileEntry

_GONE_ATTEMPTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Uploader:
    """
    What all uploads to a bucket share.

    Args:
        calls: What S3 can be asked there.
        part_bytes: Length of a part.
        pool: Threads that send parts.
        buffers: Memory for parts.
        exclusive: Whether an object that is there already is left alone.
        stopped: Set when no further part may be begun.
    """

    calls: Calls
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
        except UploadGone:
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
            except UploadGone as gone:
                if holds():
                    if self.exclusive:  # ours may still be open beside theirs
                        self.calls.abort_all(key)
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
            encoded = base64.b64encode(sha.digest()).decode()
            self.calls.put(key, buffer, entry.sha256, encoded, exclusive=exclusive)
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
        resumed = None if fresh else self.calls.resume(key)
        upload = resumed or self.calls.begin(key, entry.sha256)
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
            self.calls.abort(key, upload.upload_id)
            raise content_differs(source, sha.hexdigest(), entry)
        crc = self.calls.checksum.join(summed)
        self.calls.complete(key, upload, parts, crc, entry.size, exclusive=exclusive)
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
                crc = self.calls.checksum.update(view, crc)
                length += len(view)
            if length < num_bytes:
                # The SHA-256 is already another, so the upload will be aborted.
                rest = memoryview(bytes(num_bytes - length))
                buffer[length:] = rest
                crc = self.calls.checksum.update(rest, crc)
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
        checksum = self.calls.checksum
        try:
            encoded = checksum.encode(crc)
            etag = _matching_etag(upload.parts.get(number), buffer, encoded)
            if etag is None:
                etag = self.calls.put_part(key, upload, number, buffer, encoded)
        finally:
            self.buffers.give(buffer)
        told.tell(number, len(buffer))
        return {"PartNumber": number, "ETag": etag, checksum.field: encoded}


def _matching_etag(
    listed: Listed | None, buffer: bytearray, encoded: str
) -> str | None:
    """The tag of a part that S3 already has, if it is this one."""
    if listed is None or listed.num_bytes != len(buffer):
        return None
    if listed.checksum is not None:
        return listed.etag if listed.checksum == encoded else None
    # A server that does not list checksums: the tag of a plain part is its MD5.
    md5 = hashlib.md5(buffer, usedforsecurity=False).hexdigest()
    return listed.etag if listed.etag.strip('"') == md5 else None
