"""
A decoder quantized with one block in memory at a time.

All samples move through block k before block k + 1 is read. Inside a block the groups
of linears that share an input are solved in the order of computation, and what reaches
the next group was computed with the weights already quantized. So every later layer
repairs what the earlier ones did, each linear runs once, and only the residual stream
and the widest input inside a block are ever kept for all samples.

With `true_sequential: false` a block is calibrated in one pass with its float weights
and run a second time with the quantized ones.

Shape suffixes: I inputs of a group, O outputs, D residual width, T tokens.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from lmi_build.checkpoint.formats.config import LM_HEAD
from lmi_build.errors import StageFailed
from lmi_build.quantizers.block_loading import load_block
from lmi_build.quantizers.finite import read_finite
from lmi_build.quantizers.head import head_step, solve_head
from lmi_build.quantizers.lanes import Turns, lanes_for
from lmi_build.quantizers.solving import BlockWork
from lmi_build.quantizers.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmi_build.catalog.architectures import Architecture
    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.decoders.decoder_config import DecoderConfig
    from lmi_build.quantizers.activations import Activations, Room
    from lmi_build.quantizers.options import Options
    from lmi_build.quantizers.solving import BlockResult
    from lmi_build.quantizers.steps import Step
    from lmi_build.quantizers.targets import Linear
    from lmi_build.values.quant import QuantScheme

# Tokens per chunk: bfloat16 products on CPUs run best with about this many rows.
CHUNK_TOKENS = 512
# Scratch slot of the pass whose result is thrown away.
_SPARE_SLOT = 9


class Walker:
    """
    The residual stream of all samples, on its way through the blocks.

    Args:
        reader: The model.
        architecture: Names of its parts.
        config: Numbers of a block.
        x: What enters the first block [N, L, D]; changed in place.
        room: Scratch for what is inside a block.
        options: What the recipe decided.
        scheme: What is written.
        chosen: Full names of the linears to quantize, the head perhaps among them.
    """

    def __init__(
        self,
        *,
        reader: CheckpointReader,
        architecture: Architecture,
        config: DecoderConfig,
        x: Activations,
        room: Room,
        options: Options,
        scheme: QuantScheme,
        chosen: frozenset[str],
    ) -> None:
        self.reader = reader
        self.architecture = architecture
        self.config = config
        self.x = x
        self.room = room
        self.options = options
        self.scheme = scheme
        self.chosen = chosen
        self.has_head = LM_HEAD in chosen
        samples, length, _ = x.shape
        count = max(1, CHUNK_TOKENS // length)
        self.parts = [slice(at, at + count) for at in range(0, samples, count)]
        self.chunk_tokens = count * length
        self.lanes = lanes_for(x.device)

    def quantize_block(self, index: int) -> BlockResult:
        """
        Quantize one block and move all samples through it.

        Raises:
            SourceInvalid: `quantize.weight-not-finite`.
            StageFailed: `quantize.not-finite`, `quantize.unused` or `quantize.damp`.
        """
        if self.options.needs_hessian:
            return self._quantize_block(index)
        # Nothing of it is large enough for threads to be worth their waiting.
        with self.lanes.quiet():
            return self._quantize_block(index)

    def _quantize_block(self, index: int) -> BlockResult:
        block = load_block(
            self.architecture,
            self.config,
            self.reader,
            index,
            self.read,
        )
        block.lanes = self.lanes
        block.leaves = index + 1 < self.config.num_layers or self.has_head
        self.reader.prefetch(self.architecture.block(index + 1) + ".")
        work = BlockWork(
            block=block,
            prefix=self.architecture.block(index),
            reader=self.reader,
            options=self.options,
            scheme=self.scheme,
            chosen=self.chosen,
        )
        smooths = self.options.smooths
        if self.options.true_sequential:
            for step in block.steps(
                self.x, self.x, parts=self.parts, room=self.room, smoothing=smooths
            ):
                work.solve(step, self._observe(work, step))
            return work.result()
        spare = self.room(self.x.shape[2], _SPARE_SLOT)
        seen = [
            (step, self._observe(work, step))
            for step in block.steps(
                self.x, spare, parts=self.parts, room=self.room, smoothing=smooths
            )
        ]
        for step, statistics in seen:
            work.solve(step, statistics)
        block.kv_observer = None
        for step in block.steps(
            self.x, self.x, parts=self.parts, room=self.room, smoothing=False
        ):
            self.lanes.map(lambda make: make(), step.chunks)
        return work.result()

    def quantize_head(self, head: Linear) -> BlockResult:
        """
        Quantize the head, once all samples left the last block.

        Raises:
            SourceInvalid: `quantize.weight-not-finite`.
            StageFailed: `quantize.not-finite` or `quantize.damp`.
        """
        step = head_step(self, head)
        statistics = self._statistics(step, wanted=True, where=head.name)
        return solve_head(self, head, statistics)

    def read(self, name: str) -> Tensor:
        """A tensor, every number looked at, in the type of the computation."""
        return self.read_exact(name).to(dtype=self.x.dtype)

    def read_exact(self, name: str) -> Tensor:
        """A tensor, every number looked at, where the computation is."""
        return read_finite(self.reader, name).to(device=self.x.device)

    def _observe(self, work: BlockWork, step: Step) -> Statistics:
        """Make a group's inputs for all samples and take their statistics."""
        return self._statistics(step, wanted=work.wanted(step), where=work.where(step))

    def _statistics(self, step: Step, *, wanted: bool, where: str) -> Statistics:
        statistics = Statistics(
            step.num_inputs,
            max_tokens=self.chunk_tokens,
            hessian=wanted and self.options.needs_hessian,
            channels=wanted and self.options.needs_channels,
            means=self.options.method == "awq",
            device=self.x.device,
        )

        turns = Turns()

        def look(number: int) -> None:
            x_TI = None
            try:
                x_TI = step.chunks[number]()
            finally:
                with turns.take(number) if statistics.hangs_on_order else nullcontext():
                    if x_TI is not None:
                        statistics.add(x_TI, first=number * self.chunk_tokens)

        self.lanes.map(look, range(len(step.chunks)))
        if not statistics.is_finite():
            raise self._not_finite(where, step)
        return statistics

    def _not_finite(self, where: str, step: Step) -> StageFailed:
        """Find the first sample that spoilt the input of a layer."""
        entered = next((at for at in self._samples() if not self._is_finite(at)), None)
        inside = None if entered is not None else self._spoilt(step)
        if entered is not None:
            detail = f"sample {entered} is the first"
        elif inside is not None:
            detail = f"sample {inside} is the first, inside the block"
        else:
            detail = "only in the sum over all samples"
        return StageFailed(
            f"the input of `{where}` is NaN or infinite ({detail})",
            code="quantize.not-finite",
            hints=(
                "check that the float model itself answers that text",
                "use `model.dtype: float32` if its activations overflow",
            ),
        )

    def _spoilt(self, step: Step) -> int | None:
        """The first sample whose input is no number, or whose square is none."""
        first = 0
        for make in step.again:
            x_TI = make()
            wide_TI = x_TI.to(torch.promote_types(x_TI.dtype, torch.float32))
            bad_t = (~torch.isfinite(wide_TI.square().sum(1))).nonzero()
            if len(bad_t):
                token = first + int(bad_t[0])
                if step.token_t is not None:
                    token = int(step.token_t[token])
                return token // self.x.shape[1]
            first += len(x_TI)
        return None

    def _samples(self) -> Sequence[int]:
        return range(self.x.shape[0])

    def _is_finite(self, sample: int) -> bool:
        x_1LD = self.x.load(slice(sample, sample + 1))
        return bool(torch.isfinite(x_1LD).all())
