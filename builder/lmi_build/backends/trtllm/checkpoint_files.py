"""The files `rank0.safetensors` ... of a checkpoint, open for writing at any place."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lmi_build.checkpoint.header import DTYPES, SPELLINGS
from lmi_build.checkpoint.writer import TensorPlan, encode_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

# What a file system or kernel answers that cannot copy between files by itself.
_CANNOT_COPY = frozenset(
    {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
)

# So much is written before the disk is told to begin; it works beside what follows.
_FLUSH_BYTES = 128 << 20
# What POSIX systems take in one call (IOV_MAX).
_MAX_PIECES = 1024


def rank_file(rank: int) -> str:
    """Name of a rank's weights, as TensorRT-LLM looks for them."""
    return f"rank{rank}.safetensors"


class RankFiles:
    """
    Files of all ranks, with headers written and room for every tensor.

    What nobody writes stays zero. A file gets its name when all are whole. Several
    threads may write at once.

    Args:
        folder: Where they go; it exists.
        tensors: The tensors of each rank, in any order.

    Raises:
        OSError: The disk is full or cannot be written.
    """

    def __init__(self, folder: Path, tensors: Sequence[Sequence[TensorPlan]]) -> None:
        self._folder = folder
        self._descriptors: list[int] = []
        self._places: list[Mapping[str, int]] = []
        self._kernel_copies = hasattr(os, "copy_file_range")
        self._lock = threading.Lock()
        self._flusher = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None
        self._num_waiting_bytes = 0
        self.num_written_bytes = 0
        try:
            for rank, items in enumerate(tensors):
                self._create(rank, sorted(items, key=_data_order))
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def write(self, rank: int, name: str, offset: int, data: memoryview) -> None:
        """
        Write a piece of one tensor.

        Args:
            rank: Whose file.
            name: The tensor.
            offset: First byte, counted from the tensor's start.
            data: What goes there.
        """
        descriptor, at = self._descriptors[rank], self._places[rank][name] + offset
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], at + done)
        self._count(done)

    def write_all(
        self, rank: int, name: str, offset: int, pieces: Sequence[memoryview]
    ) -> None:
        """
        Write pieces of memory behind each other, without joining them first.

        Args:
            rank: Whose file.
            name: The tensor.
            offset: First byte, counted from the tensor's start.
            pieces: What goes there, in this order.
        """
        descriptor, at = self._descriptors[rank], self._places[rank][name] + offset
        for begin in range(0, len(pieces), _MAX_PIECES):
            rest = list(pieces[begin : begin + _MAX_PIECES])
            while rest:
                done = os.pwritev(descriptor, rest, at)
                at += done
                self._count(done)
                while rest and done >= len(rest[0]):
                    done -= len(rest.pop(0))
                if done:
                    rest[0] = rest[0][done:]

    def copy(
        self, rank: int, name: str, offset: int, source: tuple[int, int], count: int
    ) -> bool:
        """
        Let the kernel copy a piece of one tensor.

        Args:
            rank: Whose file.
            name: The tensor.
            offset: First byte, counted from the tensor's start.
            source: Open file and its first byte.
            count: Bytes.

        Returns:
            Whether it could; otherwise nothing that counts was written.
        """
        if not self._kernel_copies:
            return False
        descriptor, at = self._descriptors[rank], self._places[rank][name] + offset
        done = 0
        while done < count:
            try:
                part = os.copy_file_range(
                    source[0], descriptor, count - done, source[1] + done, at + done
                )
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
                self._kernel_copies = False
                return False
            if not part:
                return False
            done += part
        self._count(done)
        return True

    def finish(self) -> None:
        """Flush all files to the disk and give them their names."""
        if self._flushing is not None:
            self._flushing.result()
        for rank, descriptor in enumerate(self._descriptors):
            os.fsync(descriptor)
            path = self._folder / rank_file(rank)
            path.with_name(f"{path.name}.partial").replace(path)

    def _count(self, num_bytes: int) -> None:
        """Count what was written; let the disk begin when much of it waits."""
        with self._lock:
            self.num_written_bytes += num_bytes
            self._num_waiting_bytes += num_bytes
            busy = self._flushing is not None and not self._flushing.done()
            if busy or self._num_waiting_bytes < _FLUSH_BYTES:
                return
            self._num_waiting_bytes = 0
            self._flushing = self._flusher.submit(self._flush)

    def _flush(self) -> None:
        for descriptor in self._descriptors:
            os.fdatasync(descriptor)

    def _create(self, rank: int, tensors: Sequence[TensorPlan]) -> None:
        header = encode_header(tensors)
        places, at = {}, len(header)
        for tensor in tensors:
            places[tensor.name] = at
            at += tensor.num_bytes
        if len(places) != len(tensors):
            msg = f"rank {rank} has a name twice among {len(tensors)} tensors"
            raise ValueError(msg)
        path = self._folder / f"{rank_file(rank)}.partial"
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._descriptors.append(os.open(path, flags, 0o644))
        self._places.append(places)
        os.pwrite(self._descriptors[-1], header, 0)
        os.ftruncate(self._descriptors[-1], at)

    def _close(self) -> None:
        self._flusher.shutdown()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


def _data_order(tensor: TensorPlan) -> tuple[int, str]:
    """Wider elements first, which keeps every tensor aligned to its own."""
    return -DTYPES[SPELLINGS[tensor.dtype]][1], tensor.name
