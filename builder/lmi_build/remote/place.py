"""The few operations that a destination must offer, and nothing of what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lmi_build.errors import PublishFailed
from lmi_build.values.publish import Stopped

__all__ = ["Place", "Stopped", "Stored", "content_differs"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lmi_build.values.manifest import FileEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """
    A small object with the tag that a conditional write compares.

    Args:
        data: Its bytes.
        tag: Changes whenever the bytes do.
        age_seconds: Since it was written, by the clock of the place alone.
    """

    data: bytes
    tag: str
    age_seconds: float = 0.0


def content_differs(source: Path, found: str, entry: FileEntry) -> PublishFailed:
    """The error for a local file that is not what its manifest says."""
    return PublishFailed(
        f"{source} hashes to sha256:{found}, its manifest says {entry.digest}",
        code="publish.content-differs",
        hints=("run `lmi-build cache verify`, then build again",),
    )


class Place(Protocol):
    """
    A bucket or a folder; keys are relative POSIX paths below its root.

    Every method raises `RemoteFailed` when the place refuses or vanishes.
    """

    num_files_at_once: int

    def uri(self, key: str) -> str:
        """The key as the user would write it."""

    def listing(self, prefix: str) -> Mapping[str, int]:
        """Every key below a prefix (relative to it) with its length in bytes."""

    def holds(self, key: str, entry: FileEntry) -> bool:
        """
        Whether the object is there and recorded to be exactly this content.

        Raises:
            PublishFailed: It is there, but against the recipe (not encrypted).
        """

    def send(
        self, source: Path, key: str, entry: FileEntry, sent: Callable[[int], None]
    ) -> None:
        """
        Store a file under a key, reading each byte once.

        Args:
            source: Local file.
            key: Where it goes.
            entry: What it must be; nothing is stored under `key` otherwise.
            sent: Called with the bytes that arrived since the last call.

        Raises:
            PublishFailed: `publish.content-differs`.
            Stopped: `stop` was called.
        """

    def stop(self) -> None:
        """Make every `send` in progress raise `Stopped` soon; none may follow."""

    def read(self, key: str) -> Stored | None:
        """A small object, or None when there is none."""

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """
        The bytes of an object from an offset on.

        Raises:
            RemoteFailed: `remote.not-found` when there is none.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Write a new small object; False, and nothing written, when one is there."""

    def swap(self, key: str, data: bytes, *, tag: str) -> bool:
        """Overwrite a small object that still has this tag; False otherwise."""

    def tidy(self, prefix: str) -> None:
        """Remove what killed attempts left below a prefix, never an object."""

    def close(self) -> None:
        """Give connections back."""
