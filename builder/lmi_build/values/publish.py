"""What a published artifact is, told as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.units import MiB

if TYPE_CHECKING:
    from lmi_build.digest import Digest

# S3's own floor for every part but the last.
MIN_PART_BYTES = 5 * MiB


class Stopped(Exception):
    """A send ended early because its place was told to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """
    How bytes move; nothing here changes what is published.

    Args:
        part_bytes: Bytes of one part of a multipart upload, and the largest file
            that goes up in a single request.
        concurrency: Parts in flight; memory is about this times `part_bytes`. 0 takes
            four for each core, at most 16.
        attempts: Tries of one request, the first included.
        connect_timeout_seconds: Wait for a connection.
        read_timeout_seconds: Wait for the next byte of an answer.
    """

    part_bytes: int = 16 * MiB
    concurrency: int = 0
    attempts: int = 6
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.part_bytes < MIN_PART_BYTES:
            raise ValueError(f"part_bytes is {self.part_bytes}, S3's least is 5 MiB")
        if self.concurrency < 0 or self.attempts < 1:
            raise ValueError("attempts start at 1, concurrency at 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishReceipt:
    """
    The proof that an artifact is whole at its destination.

    Args:
        uri: The immutable version prefix, with its trailing slash.
        manifest_digest: The artifact's identity.
        num_files: Files of the artifact, `manifest.json` included.
        uploaded_bytes: Bytes of files that were sent in this run.
        skipped_bytes: Bytes of files that were already there and right.
        seconds: Wall time.
    """

    uri: str
    manifest_digest: Digest
    num_files: int
    uploaded_bytes: int
    skipped_bytes: int
    seconds: float
