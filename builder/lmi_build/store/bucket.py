"""What a shared store needs of a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lmi_build.values.manifest import FileEntry


class SmallObject(Protocol):
    """A small object as it was read."""

    @property
    def data(self) -> bytes:
        """Its bytes."""

    @property
    def tag(self) -> str:
        """What a conditional write compares."""

    @property
    def age_seconds(self) -> float:
        """Since it was written, by the remote's own clock."""


class Remote(Protocol):
    """
    What a shared store needs of a bucket; keys are relative to its prefix.

    Every method raises `RemoteFailed` when the remote refuses or vanishes.
    """

    num_files_at_once: int

    def uri(self, key: str) -> str:
        """The key as the user would write it."""

    def holds(self, key: str, entry: FileEntry) -> bool:
        """Whether the object is there and recorded to be exactly this content."""

    def send(
        self, source: Path, key: str, entry: FileEntry, sent: Callable[[int], None]
    ) -> None:
        """Store a file; one that came first with this content stays."""

    def stop(self) -> None:
        """Make every `send` in progress end soon."""

    def go_on(self) -> None:
        """Allow `send` again."""

    def read(self, key: str) -> SmallObject | None:
        """A small object, or None."""

    def stream(
        self, key: str, *, start: int = 0, count: int | None = None
    ) -> Iterator[bytes]:
        """An object's bytes; a broken connection is taken up where it broke."""

    def put(self, key: str, data: bytes, *, tag: str = "") -> str | None:
        """
        Write a new small object, or overwrite one that still has this tag.

        Returns:
            The new tag, or None, and nothing written, when somebody came between.
        """

    def listing(self, prefix: str) -> Mapping[str, int]:
        """Every key below a prefix, relative to it, with its length in bytes."""

    def remove(self, key: str) -> None:
        """Delete an object; that there is none is as good."""

    def close(self) -> None:
        """Give connections back."""
