"""
Tensors read one at a time, so that a model never has to fit into memory.

Bytes are read with `pread` into memory of their own instead of being mapped: mapped
pages count as resident until the kernel feels like dropping them, and a file that
shrinks under a mapping kills the process. Only what goes straight to another file is
mapped, a piece at a time (`mapped`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.header import TensorEntry, read_header
from lmi_build.digest import CHUNK_BYTES
from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from torch import Tensor
    from typing_extensions import Self

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


class CheckpointReader:
    """
    The tensors of a folder of safetensors files.

    Args:
        folder: It holds `model.safetensors`, or shards with their index.

    Raises:
        SourceInvalid: No weights, a broken file, or an index that does not fit.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, int] = {}
        self._places: dict[str, tuple[str, TensorEntry]] = {}
        for file in weight_files(folder):
            for name, entry in read_header(folder / file).tensors.items():
                if name in self._places:
                    raise SourceInvalid(
                        f"`{name}` is both in `{self._places[name][0]}` and `{file}`",
                        code="checkpoint.duplicate",
                        hints=(f"remove one of the two files from `{folder}`",),
                    )
                self._places[name] = (file, entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Every tensor by name, sorted."""
        return {name: self._places[name][1] for name in sorted(self._places)}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def entry(self, name: str) -> TensorEntry:
        """
        What the header says of a tensor.

        Raises:
            SourceInvalid: `checkpoint.missing-tensor`.
        """
        if name not in self._places:
            raise SourceInvalid(
                f"`{self.folder}` has no tensor `{name}`",
                code="checkpoint.missing-tensor",
                hints=("fetch the model again, or correct its config.json",),
            )
        return self._places[name][1]

    def read(self, name: str) -> Tensor:
        """
        One tensor in its own dtype.

        Raises:
            SourceInvalid: It is missing, or its file became shorter.
        """
        import torch

        entry = self.entry(name)
        data = torch.empty(entry.num_bytes, dtype=torch.uint8)
        if entry.num_bytes:
            self._fill(byte_view(data), name, entry.begin)
        return data.view(getattr(torch, entry.dtype)).view(entry.shape)

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """
        Some rows of a matrix, such as the embeddings of the tokens that occur.

        Args:
            name: A tensor of two dimensions.
            rows: Row numbers; they may repeat.

        Returns:
            The rows, in that order.
        """
        import torch

        entry = self.entry(name)
        row_bytes = entry.num_bytes // entry.shape[0]
        data = torch.empty((len(rows), row_bytes), dtype=torch.uint8)
        view = byte_view(data)
        for index, row in enumerate(rows):
            if not 0 <= row < entry.shape[0]:
                raise IndexError(f"row {row} of `{name}` with {entry.shape[0]} rows")
            piece = view[index * row_bytes : (index + 1) * row_bytes]
            self._fill(piece, name, entry.begin + row * row_bytes)
        return data.view(getattr(torch, entry.dtype))

    def read_into(self, name: str, view: memoryview, offset: int) -> None:
        """
        Part of a tensor's bytes into memory of the caller.

        Args:
            name: The tensor.
            view: What to fill; it ends inside the tensor.
            offset: First byte, counted from the tensor's start.

        Raises:
            SourceInvalid: It is missing, or its file became shorter.
        """
        self._fill(view, name, self.entry(name).begin + offset)

    @contextlib.contextmanager
    def mapped(self, name: str, offset: int, num_bytes: int) -> Iterator[memoryview]:
        """
        Part of a tensor's bytes where the kernel has them, to be handed to the kernel.

        What is written from here is copied once. The program itself must not touch the
        bytes: were the file cut, that would kill the process, and a write only fails.

        Args:
            name: The tensor.
            offset: First byte, counted from the tensor's start.
            num_bytes: How many.

        Raises:
            SourceInvalid: It is missing, or its file became shorter.
        """
        begin = self.entry(name).begin + offset
        start = begin - begin % mmap.ALLOCATIONGRANULARITY
        size = begin - start + num_bytes
        try:
            pages = mmap.mmap(
                self.descriptor(name), size, access=mmap.ACCESS_READ, offset=start
            )
        except ValueError as error:
            raise self._shorter(name) from error
        view = memoryview(pages)[begin - start :]
        try:
            yield view
        except OSError as error:
            raise (
                self._shorter(name) if error.errno == errno.EFAULT else error
            ) from error
        finally:
            view.release()
            # Pieces that an error still refers to keep the pages; they go with it.
            with contextlib.suppress(BufferError):
                pages.close()

    def descriptor(self, name: str) -> int:
        """The open file that holds a tensor; it belongs to the reader."""
        self.entry(name)
        return self._descriptor(self._places[name][0])

    def position(self, name: str) -> tuple[str, int]:
        """File and first byte of a tensor: sorted by it, reading never goes back."""
        begin = self.entry(name).begin
        return self._places[name][0], begin

    def stream(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor, in pieces of at most one chunk."""
        entry = self.entry(name)
        for begin in range(entry.begin, entry.end, CHUNK_BYTES):
            piece = bytearray(min(CHUNK_BYTES, entry.end - begin))
            self._fill(memoryview(piece), name, begin)
            yield bytes(piece)

    def prefetch(self, prefix: str) -> None:
        """
        Ask the kernel to read every tensor whose name starts so, in the background.

        Costs no memory of this process; where the advice is not known, it is not given.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        for name, (file, entry) in self._places.items():
            if name.startswith(prefix) and entry.num_bytes:
                os.posix_fadvise(
                    self._descriptor(file),
                    entry.begin,
                    entry.num_bytes,
                    os.POSIX_FADV_WILLNEED,
                )

    def _descriptor(self, file: str) -> int:
        if file not in self._files:
            self._files[file] = os.open(self.folder / file, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[file]

    def _fill(self, view: memoryview, name: str, begin: int) -> None:
        file = self._places[name][0]
        descriptor = self._descriptor(file)
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], begin + done)
            if not count:
                raise self._shorter(name)
            done += count

    def _shorter(self, name: str) -> SourceInvalid:
        file = self._places[name][0]
        return SourceInvalid(
            f"`{self.folder / file}` became shorter while `{name}` was read",
            code="checkpoint.truncated",
            hints=("fetch the model again; do not change it during a build",),
        )


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, shared with it."""
    import torch

    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def weight_files(folder: Path) -> tuple[str, ...]:
    """
    Names of the safetensors files of a model, sorted.

    Args:
        folder: The model.

    Raises:
        SourceInvalid: `checkpoint.no-weights` or `checkpoint.index`.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        if (folder / SINGLE_NAME).is_file():
            return (SINGLE_NAME,)
        raise SourceInvalid(
            f"`{folder}` has neither `{SINGLE_NAME}` nor `{INDEX_NAME}`",
            code="checkpoint.no-weights",
            hints=("point `model.source` at a folder with safetensors weights",),
        )
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
        wrong = [name for name in files if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad_index(index, f"it has no readable `weight_map` ({error})") from error
    if wrong or not files:
        raise _bad_index(index, f"it names {wrong or 'no file'}")
    for name in files:
        if not (folder / name).is_file():
            raise _bad_index(index, f"it names `{name}`, which is not there")
    return tuple(files)


def _bad_index(index: Path, detail: str) -> SourceInvalid:
    return SourceInvalid(
        f"`{index}` is wrong: {detail}",
        code="checkpoint.index",
        hints=("fetch the model again",),
    )
