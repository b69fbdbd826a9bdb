"""Whole decoders run by the built-in quantizer's blocks, for tests that compare."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmi_build.catalog.architectures import find_architecture
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.decoders.decoder_config import read_config
from lmi_build.quantizers.block_loading import load_block
from lmi_build.quantizers.embedding import embed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lmi_build.catalog.architectures import Architecture
    from lmi_build.decoders.decoder_config import DecoderConfig
    from lmi_build.quantizers.decoder import Block
    from lmi_build.quantizers.steps import Step


class Held:
    """
    Activations in memory.

    Args:
        x_NLW: All of them.
        copies: `load` gives copies, as if they lay on disk.
    """

    def __init__(self, x_NLW: Tensor, *, copies: bool = False) -> None:
        self.x_NLW = x_NLW
        self.copies = copies

    @property
    def shape(self) -> tuple[int, int, int]:
        """Samples, tokens, width."""
        samples, length, width = self.x_NLW.shape
        return samples, length, width

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.x_NLW.dtype

    def load(self, part: slice) -> Tensor:
        """Some samples."""
        return self.x_NLW[part].clone() if self.copies else self.x_NLW[part]

    def store(self, part: slice, x_SLW: Tensor) -> None:
        """Replace some samples."""
        self.x_NLW[part] = x_SLW


class Decoder:
    """
    A checkpoint as the quantizer sees it.

    Args:
        folder: A Hugging Face folder.
        dtype: Of the computation.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.folder = folder
        self.dtype = dtype
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        with CheckpointReader(folder) as reader:
            self.shapes = {k: (e.dtype, e.shape) for k, e in reader.tensors.items()}
        architecture = find_architecture(config, self.shapes)
        assert architecture is not None, config["architectures"]
        self.architecture: Architecture = architecture
        self.config: DecoderConfig = read_config(config)

    def block(self, index: int) -> Block:
        """One block, read anew."""
        with CheckpointReader(self.folder) as reader:
            return load_block(
                self.architecture,
                self.config,
                reader.tensors,
                index,
                lambda name: reader.read(name).to(self.dtype),
            )

    def embed(self, tokens_NL: Tensor) -> Tensor:
        """What enters block 0, [N, L, D]."""
        with CheckpointReader(self.folder) as reader:
            enter = embed(self.architecture, self.config, reader, tokens_NL, self.dtype)
            return torch.cat([enter(slice(at, at + 1)) for at in range(len(tokens_NL))])

    def states(self, tokens_NL: Tensor) -> Iterator[Tensor]:
        """The residual stream after every block, [N, L, D]."""
        x_NLD = self.embed(tokens_NL)
        for index in range(self.config.num_layers):
            x_NLD = run(self.block(index), x_NLD)
            yield x_NLD


def run(
    block: Block,
    x_NLD: Tensor,
    *,
    visit: Callable[[Step, Tensor], None] | None = None,
    smoothing: bool = True,
    copies: bool = False,
) -> Tensor:
    """
    Take samples through a block, two at a time.

    Args:
        block: The block.
        x_NLD: What enters; stays as it is.
        visit: Told of every step and of its inputs [T, I].
        smoothing: Ask for steps that only search a smoothing.
        copies: Keep activations as if they lay on disk.

    Returns:
        What leaves.
    """
    x, out = Held(x_NLD.clone(), copies=copies), Held(x_NLD.clone(), copies=copies)
    samples, length, _ = x_NLD.shape

    def room(width: int, slot: int = 0) -> Held:
        """Full of NaN, so that what was never stored shows."""
        del slot
        return Held(x_NLD.new_full((samples, length, width), torch.nan), copies=copies)

    parts = [slice(at, at + 2) for at in range(0, samples, 2)]
    for step in block.steps(x, out, parts=parts, room=room, smoothing=smoothing):
        chunks = [chunk.clone() for chunk in step.inputs()]
        if visit is not None:
            empty = x_NLD.new_empty(0, step.num_inputs)
            visit(step, torch.cat([empty, *chunks]))
    assert torch.equal(x.x_NLW, x_NLD)
    return out.x_NLW
