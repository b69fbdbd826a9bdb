"""
What a killed quantization leaves behind, so that the next attempt goes on from there.

Each finished block is one file; the activations that enter the next block are another.
`progress.json` names them with their digests and is written last, so what it does not
name does not exist. A record that does not hold makes the work start over.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmi_build.checkpoint.header import read_header
from lmi_build.checkpoint.ledger import LedgerRow, row_from_json
from lmi_build.checkpoint.reader import byte_view
from lmi_build.checkpoint.writer import tensor_plan, write_file
from lmi_build.digest import digest_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from torch import Tensor

    from lmi_build.quantizers.activations import Activations

RECORD_NAME = "progress.json"
# What was kept less than so many seconds after the last wait for the disk does not wait
# again: a killed process loses nothing by that, and a machine that loses its power
# starts over what takes little more than this.
_FLUSH_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """
    One finished block.

    Args:
        file: Its file in the state folder.
        digest: Of that file.
        rows: Its part of the ledger.
    """

    file: str
    digest: str
    rows: tuple[LedgerRow, ...]


class BlockState:
    """
    The finished blocks of one piece of work.

    Args:
        folder: Survives a killed attempt.
        identity: Names the work; a record of other work is not used.
    """

    def __init__(self, folder: Path, *, identity: str) -> None:
        self.folder = folder
        self.identity = identity
        self.blocks: list[Finished] = []
        # Each block as the record says it: a long ledger is not told anew every time.
        self._texts: list[str] = []
        self._activations: tuple[str, str] | None = None
        self._flushed_at = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> int:
        """
        Read the record and check every byte it names.

        Returns:
            The number of finished blocks; 0 where there is nothing to go on from.
        """
        try:
            record = json.loads((self.folder / RECORD_NAME).read_text("utf-8"))
            if record["identity"] == self.identity:
                self._load(record)
        except (OSError, ValueError, KeyError, TypeError):
            self.blocks, self._texts, self._activations = [], [], None
        self._sweep()
        return len(self.blocks)

    def _load(self, record: dict[str, Any]) -> None:
        blocks = [
            Finished(
                file=block["file"],
                digest=block["digest"],
                rows=tuple(row_from_json(row) for row in block["rows"]),
            )
            for block in record["blocks"]
        ]
        named = [(block.file, block.digest) for block in blocks]
        activations = record["activations"]
        named += [tuple(activations)] if activations else []
        if all(digest_file(self.folder / file) == digest for file, digest in named):
            self.blocks = blocks
            self._texts = [json.dumps(block) for block in record["blocks"]]
            self._activations = tuple(activations) if activations else None

    def _sweep(self) -> None:
        """Remove whatever the record does not name."""
        keep = {block.file for block in self.blocks}
        keep |= {self._activations[0]} if self._activations else set()
        keep |= {RECORD_NAME} if self.blocks else set()
        for path in self.folder.iterdir():
            if path.name not in keep and path.is_file():
                path.unlink()

    def load_activations(self, into: Activations) -> None:
        """
        Fill with the activations that enter the next block.

        Raises:
            ValueError: None were kept, or their size differs.
        """
        if self._activations is None:
            raise ValueError("no activations were kept")
        with (self.folder / self._activations[0]).open("rb", buffering=0) as stream:
            for index in range(into.shape[0]):
                x_1LW = torch.empty((1, *into.shape[1:]), dtype=into.dtype)
                view = byte_view(x_1LW)
                if stream.readinto(view) != len(view):
                    raise ValueError("the activations kept have another size")
                into.store(slice(index, index + 1), x_1LW)
            if stream.read(1):
                raise ValueError("the activations kept have another size")

    def commit(
        self,
        tensors: Mapping[str, Tensor],
        rows: tuple[LedgerRow, ...],
        *,
        activations: Activations | None,
        on_copied: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Keep a block: its file, then the activations, then the record.

        Args:
            tensors: The block's results by name.
            rows: Its part of the ledger.
            activations: What enters the next block; None needs none.
            on_copied: Called when the activations may change again: the system has
                them, though not yet on disk.
        """
        index = len(self.blocks)
        file = f"block-{index:05d}.safetensors"
        plans = [tensor_plan(name, tensors[name]) for name in sorted(tensors)]
        write_file(self.folder / file, plans, lambda name: [byte_view(tensors[name])])
        digest = digest_file(self.folder / file)
        block = Finished(file=file, digest=digest, rows=rows)
        self.blocks.append(block)
        self._texts.append(json.dumps(asdict(block)))
        old = self._activations
        if activations is not None:
            self._activations = self._keep_activations(activations, index, on_copied)
        self._write_record()
        if old is not None and old != self._activations:
            (self.folder / old[0]).unlink(missing_ok=True)

    def _keep_activations(
        self, activations: Activations, index: int, on_copied: Callable[[], None]
    ) -> tuple[str, str]:
        file = f"activations-{index:05d}.bin"
        sha = hashlib.sha256()
        # Pieces are hashed beside their being written; both leave the interpreter.
        with (
            (self.folder / file).open("wb", buffering=0) as stream,
            ThreadPoolExecutor(1) as hasher,
        ):
            hashed: Future[None] | None = None
            for piece in activations.pieces():
                if hashed is not None:
                    hashed.result()
                hashed = hasher.submit(sha.update, piece)
                view = piece
                while view:
                    view = view[stream.write(view) :]
            if hashed is not None:
                hashed.result()
            on_copied()
            if time.monotonic() - self._flushed_at >= _FLUSH_SECONDS:
                os.fsync(stream.fileno())
                self._flushed_at = time.monotonic()
        return file, f"sha256:{sha.hexdigest()}"

    def _write_record(self) -> None:
        partial = self.folder / (RECORD_NAME + ".partial")
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(f'{{"identity": {json.dumps(self.identity)}, "blocks": [')
            stream.write(", ".join(self._texts))
            stream.write(f'], "activations": {json.dumps(self._activations)}}}')
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.folder / RECORD_NAME)

    def rows(self) -> Iterator[LedgerRow]:
        """The ledger of all finished blocks."""
        for block in self.blocks:
            yield from block.rows

    def places(self) -> dict[str, tuple[Path, int, int]]:
        """Result name to file, first byte and one past the last byte."""
        found: dict[str, tuple[Path, int, int]] = {}
        for block in self.blocks:
            path = self.folder / block.file
            for name, entry in read_header(path).tensors.items():
                found[name] = (path, entry.begin, entry.end)
        return found
