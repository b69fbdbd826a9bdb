"""
What the samples carry between and inside blocks, in memory or in files.

A decoder's walk keeps the residual stream of all samples and the widest input inside
a block. Both are only ever touched a few samples at a time, in order, so where memory
is short they live in files: a chunk is read, used, written back, and nothing but that
chunk is resident. Files are read and written by position instead of being mapped,
because mapped pages count as resident until the kernel drops them.

Another thread may be reading all of them (`held`); storing waits until it has.

Shape suffixes: N samples, S samples of one chunk, L tokens of a sample, W width.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmi_build.checkpoint.reader import byte_view
from lmi_build.digest import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path


class HeldActivations:
    """
    Activations in memory; `load` gives a view.

    Args:
        x_NLW: All of them.
    """

    def __init__(self, x_NLW: Tensor) -> None:
        self.x_NLW = x_NLW
        self.held: Future[Any] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Samples, tokens, width."""
        samples, length, width = self.x_NLW.shape
        return samples, length, width

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.x_NLW.dtype

    @property
    def device(self) -> torch.device:
        """Where chunks are handed out."""
        return self.x_NLW.device

    def load(self, part: slice) -> Tensor:
        """Some samples [S, L, W]; not to be changed."""
        return self.x_NLW[part]

    def store(self, part: slice, x_SLW: Tensor) -> None:
        """Replace some samples."""
        if self.held is not None:
            self.held.result()
        here_SLW = self.x_NLW[part]
        if here_SLW.data_ptr() != x_SLW.data_ptr():
            here_SLW.copy_(x_SLW)

    def pieces(self) -> Iterator[memoryview]:
        """All bytes, in order."""
        view = byte_view(self.x_NLW.contiguous().cpu())
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


class SpilledActivations:
    """
    Activations in a file; `load` gives a copy.

    Args:
        path: Made anew; whoever owns the folder removes it.
        shape: Samples, tokens, width.
        dtype: Type of the values.
        device: Where chunks are handed out.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        *,
        device: torch.device,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.held: Future[Any] | None = None
        self._sample_bytes = shape[1] * shape[2] * dtype.itemsize
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        # Blocks are reserved now, so that a full disk is told before any work.
        os.posix_fallocate(self._descriptor, 0, max(1, shape[0] * self._sample_bytes))

    def load(self, part: slice) -> Tensor:
        """Some samples [S, L, W], read from the file."""
        first, last, _ = part.indices(self.shape[0])
        x_SLW = torch.empty((last - first, *self.shape[1:]), dtype=self.dtype)
        view, at = byte_view(x_SLW), first * self._sample_bytes
        while view:
            count = os.preadv(self._descriptor, [view], at)
            if not count:
                raise OSError(f"the activations end at byte {at}")
            view, at = view[count:], at + count
        return x_SLW.to(self.device)

    def store(self, part: slice, x_SLW: Tensor) -> None:
        """Replace some samples."""
        if self.held is not None:
            self.held.result()
        first, _, _ = part.indices(self.shape[0])
        view = byte_view(x_SLW.to("cpu", self.dtype).contiguous())
        at = first * self._sample_bytes
        while view:
            count = os.pwritev(self._descriptor, [view], at)
            view, at = view[count:], at + count

    def pieces(self) -> Iterator[memoryview]:
        """All bytes, in order."""
        for index in range(self.shape[0]):
            yield byte_view(self.load(slice(index, index + 1)).cpu())

    def close(self) -> None:
        """Give the file back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


Activations = HeldActivations | SpilledActivations


class Room:
    """
    Scratch for what is inside a block; each slot reuses its memory, call after call.

    Args:
        samples: N.
        length: L.
        dtype: Type of the values.
        device: Where chunks are handed out.
        folder: Spill to files in this folder; None keeps them in memory.
    """

    def __init__(
        self,
        samples: int,
        length: int,
        dtype: torch.dtype,
        *,
        device: torch.device,
        folder: Path | None,
    ) -> None:
        self.samples = samples
        self.length = length
        self.dtype = dtype
        self.device = device
        self.folder = folder
        self._memory: dict[int, Tensor] = {}

    def reserve(self, width: int, slot: int = 0) -> None:
        """Allocate a slot for its widest use now, so that it never grows."""
        if self.folder is None:
            self._flat(self.samples * self.length * width, slot)

    def __call__(self, width: int, slot: int = 0) -> Activations:
        """Room for [N, L, width]; what the slot held before is gone."""
        shape = (self.samples, self.length, width)
        if self.folder is not None:
            path = self.folder / f"room-{slot}.bin"
            return SpilledActivations(path, shape, self.dtype, device=self.device)
        count = self.samples * self.length * width
        return HeldActivations(self._flat(count, slot)[:count].view(shape))

    def _flat(self, count: int, slot: int) -> Tensor:
        held = self._memory.get(slot)
        if held is None or held.numel() < count:
            # The old one goes first: both at once would be the peak.
            self._memory.pop(slot, None)
            del held
            self._memory[slot] = torch.empty(
                count, dtype=self.dtype, device=self.device
            )
        return self._memory[slot]
