"""Parts of an upload: their table, their memory, their account."""

from __future__ import annotations

from dataclasses import dataclass, field
from queue import LifoQueue
from threading import Semaphore
from typing import TYPE_CHECKING

from lmi_build.units import MiB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from io import FileIO

_SLICE_BYTES = MiB
# S3's own limit.
_MAX_PARTS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A part that S3 already has: bytes, MD5-like tag, and its CRC when S3 says it."""

    num_bytes: int
    etag: str
    checksum: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """An upload in progress and the parts that S3 has of it."""

    upload_id: str
    parts: Mapping[int, Listed] = field(default_factory=dict)


class Once:
    """Tells the bytes of each part once, however often the upload starts over."""

    def __init__(self, sent: Callable[[int], None]) -> None:
        self._sent = sent
        self._told: set[int] = set()

    def tell(self, number: int, num_bytes: int) -> None:
        """Count a part that has arrived."""
        if number not in self._told:
            self._told.add(number)
            self._sent(num_bytes)


def part_length(num_bytes: int, least_bytes: int) -> int:
    """The length of a part: the same for every attempt, at most 10,000 of them."""
    needed = -(-num_bytes // _MAX_PARTS)
    return max(least_bytes, -(-needed // MiB) * MiB)


def part_table(num_bytes: int, part_bytes: int) -> Iterator[tuple[int, int]]:
    """Part numbers from 1, each with its length."""
    for number, start in enumerate(range(0, num_bytes, part_bytes), start=1):
        yield number, min(part_bytes, num_bytes - start)


def slices(stream: FileIO, buffer: bytearray) -> Iterator[memoryview]:
    """Fill a buffer, yielding what was read while it is still in the CPU's cache."""
    view = memoryview(buffer)
    while view:
        length = stream.readinto(view[:_SLICE_BYTES])
        if not length:
            return
        yield view[:length]
        view = view[length:]


class Buffers:
    """
    Part buffers in use at once, so that memory is bounded by their number.

    Args:
        count: Buffers.
        part_bytes: Bytes of each.
    """

    def __init__(self, count: int, part_bytes: int) -> None:
        self._free: LifoQueue[bytearray] = LifoQueue()
        self._slots = Semaphore(count)
        self._part_bytes = part_bytes

    def take(self, num_bytes: int) -> bytearray:
        """Wait for a buffer of this length; whole parts are reused."""
        self._slots.acquire()
        if num_bytes != self._part_bytes or self._free.empty():
            return bytearray(num_bytes)
        return self._free.get()

    def give(self, buffer: bytearray) -> None:
        """Return a buffer."""
        if len(buffer) == self._part_bytes:
            self._free.put(buffer)
        self._slots.release()
