"""
One block's linears on their way from float to codes.

A step's inputs give statistics; statistics and weights give a smoothing scale and
codes. What the decoder goes on with are the codes' values in the *unsmoothed*
coordinates, W' = Q / s, or their integer products with inputs divided by s (coded.py):
the scale s is taken out of what feeds the layer only on disk, where it is divided into
a norm's weight or into the rows of the linear before. So the walk never changes a norm,
and a layer that is already quantized takes its share by its scales alone.

Shape suffixes: I input channels, O output channels (of a group of linears side by
side), R output rows of one linear, G groups of I, D norm channels, T tokens.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from lmi_build.checkpoint.formats.codec import pack_linear
from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS
from lmi_build.checkpoint.ledger import made, smoothed
from lmi_build.errors import StageFailed
from lmi_build.numerics.gptq import NotPositiveDefinite
from lmi_build.numerics.grids import dequantize
from lmi_build.numerics.kv_cache import CacheObserver
from lmi_build.quantizers import methods
from lmi_build.quantizers.coded import coded_linear, is_coded
from lmi_build.quantizers.smoothing import Smoothing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from lmi_build.checkpoint.ledger import LedgerRow
    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.numerics.gptq import Quantized
    from lmi_build.quantizers.decoder import Block
    from lmi_build.quantizers.options import Options
    from lmi_build.quantizers.statistics import Statistics
    from lmi_build.quantizers.steps import Step
    from lmi_build.values.quant import QuantScheme

# Output channels that a search over many experts looks at; they are drawn evenly.
_SEARCHED_OUTPUTS = 16384


@dataclass(kw_only=True)
class Solved:
    """
    One quantized linear; it may share its codes' memory with others of its step.

    Args:
        quantized: Of the whole step, in smoothed coordinates.
        columns: The linear's outputs in it.
        input_scale: Static scale of its inputs, or None.
        num_tokens: Tokens it was calibrated on.
    """

    quantized: Quantized
    columns: slice
    input_scale: Tensor | None = None
    num_tokens: int = 0


@dataclass(kw_only=True)
class BlockResult:
    """
    A finished block.

    Args:
        tensors: Results by name.
        rows: Ledger rows of everything that changed.
    """

    tensors: dict[str, Tensor]
    rows: list[LedgerRow] = field(default_factory=list)


@contextmanager
def told(where: str) -> Iterator[None]:
    """Name the layer whose inputs leave no Hessian that can be factored."""
    try:
        yield
    except NotPositiveDefinite as error:
        raise StageFailed(
            f"the inputs of `{where}` leave no stable Hessian: {error}",
            code="quantize.damp",
            hints=("raise `quantize.calibration.num_samples`",),
        ) from error


def check_used(where: str, h_II: Tensor) -> None:
    """
    Refuse a layer that no token reaches.

    Raises:
        StageFailed: `quantize.unused`.
    """
    if bool((h_II.diagonal() > 0).any()):
        return
    raise StageFailed(
        f"`{where}` never sees a number other than zero during calibration",
        code="quantize.unused",
        hints=(f"add `{where}` to `quantize.ignore`",),
    )


class BlockWork:
    """
    A block between its first step and its result.

    Args:
        block: Its weights; replaced as they are solved.
        prefix: Of its names, without the final dot.
        reader: The model.
        options: What the recipe decided.
        scheme: What is written.
        chosen: Full names of the linears to quantize.
    """

    def __init__(
        self,
        *,
        block: Block,
        prefix: str,
        reader: CheckpointReader,
        options: Options,
        scheme: QuantScheme,
        chosen: frozenset[str],
    ) -> None:
        self.block = block
        self.prefix = prefix
        self.reader = reader
        self.options = options
        self.scheme = scheme
        self.chosen = chosen
        self.solved: dict[str, Solved] = {}
        self.smoothing = Smoothing(block=block, prefix=prefix, reader=reader)
        self.cache: CacheObserver | None = None
        if options.kv_cache_dtype != "auto":
            self.cache = CacheObserver(block.config.num_kv_heads)
            block.kv_observer = self.cache.add

    def wanted(self, step: Step) -> bool:
        """Whether anything of a step needs statistics."""
        return any(self._is_chosen(part) for part in (*step.parts, *step.searched))

    def where(self, step: Step) -> str:
        """Name of a step's first linear, for messages."""
        return f"{self.prefix}.{(step.parts or step.searched)[0]}"

    def _is_chosen(self, part: str) -> bool:
        return f"{self.prefix}.{part}" in self.chosen

    def solve(self, step: Step, statistics: Statistics) -> None:
        """
        Quantize a step's linears and put their values into the block.

        Raises:
            StageFailed: `quantize.unused` or `quantize.damp`.
        """
        if not self.wanted(step):
            return
        h_II = None
        if self.options.needs_hessian:
            h_II = statistics.take_hessian()
            check_used(self.where(step), h_II)
        parts = [part for part in step.parts if self._is_chosen(part)]
        with told(self.where(step)):
            scale_I, w_IO = self._scale(step, statistics, h_II)
        if not parts:
            return
        if w_IO is None:
            w_IO = self._weights(parts)
        if scale_I is not None:
            w_IO.mul_(scale_I[:, None])
            if h_II is not None:
                h_II.div_(scale_I[:, None]).div_(scale_I)
        with told(self.where(step)):
            quantized = methods.round_weights(
                w_IO, h_II, self.options, self.scheme, lanes=self.block.lanes
            )
        if statistics.channels is not None and h_II is None:
            quantized = methods.measured(
                quantized,
                w_IO,
                statistics.channels.stats(),
                scale_I,
                self.scheme,
                lanes=self.block.lanes,
            )
        del w_IO, h_II
        input_scale = None
        if self.options.activations == "static" and statistics.channels is not None:
            input_scale = methods.static_input_scale(
                statistics.channels.stats(), quantized, scale_I, self.scheme
            )
        self._install(parts, quantized, scale_I, input_scale, statistics.num_tokens)

    def _scale(
        self, step: Step, statistics: Statistics, h_II: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """
        The smoothing of a step: decided before, searched now, or none.

        Returns:
            The scales, and the weights [I, O] of the step's linears if these are what
            was searched: they are rounded next, and need not be made again.
        """
        absorb = step.absorb
        if absorb is None or not self.options.smooths:
            return None, None
        known = self.smoothing.known(absorb)
        if known is not None:
            self.smoothing.multiply(absorb, self._floats(step), known)
            return known, None
        searched = [part for part in step.searched if self._is_chosen(part)]
        if not searched or not statistics.num_tokens:
            return None, None
        assert statistics.channels is not None  # noqa: S101 - a smoothing method's
        w_IO = self._searched_weights(searched)
        wish_I = methods.search_scale(
            w_IO,
            h_II,
            statistics.channels.stats(),
            self.options,
            self.scheme,
            tie_I=absorb.rows_I,
            lanes=self.block.lanes,
        )
        scale_I = self.smoothing.decide(
            absorb, wish_I, self.solved.get(absorb.name), self.scheme
        )
        self.smoothing.multiply(absorb, self._floats(step), scale_I)
        mine = [part for part in step.parts if self._is_chosen(part)]
        whole = mine == searched and w_IO.shape[1] == self._outputs(mine)
        return scale_I, w_IO if whole else None

    def _floats(self, step: Step) -> list[str]:
        """Linears of a step that stay in float and read the same smoothed inputs."""
        return [part for part in step.parts if not self._is_chosen(part)]

    def _outputs(self, parts: list[str]) -> int:
        """Output channels of several linears."""
        return sum(self.block.weights[part].shape[0] for part in parts)

    def _weights(self, parts: list[str]) -> Tensor:
        """Float32 weights of several linears side by side [I, O]."""
        total = self._outputs(parts)
        device = self.block.weights[parts[0]].device
        w_IO = torch.empty(self.block.num_inputs(parts[0]), total, device=device)
        # Each by itself: all of them together and turned around would be there thrice.
        stop = 0
        for part in parts:
            start, stop = stop, stop + self.block.weights[part].shape[0]
            w_IO[:, start:stop] = self._weight(part).T
        return w_IO

    def _weight(self, part: str) -> Tensor:
        """
        Float32 weight [R, I], from the file where the block's copy is coarser.

        A weight in the block that was not solved yet is still the model's own.
        """
        held_RI = self.block.weights[part]
        entry = self.reader.entry(f"{self.prefix}.{part}.weight")
        if str(held_RI.dtype).removeprefix("torch.") == entry.dtype:
            return held_RI.float()
        weight = self.reader.read(entry.name).to(held_RI.device)
        if weight.shape != held_RI.shape:
            weight = weight.T
        return weight.float()

    def _searched_weights(self, parts: list[str]) -> Tensor:
        """Weights a search looks at: all, or an even draw where they are too many."""
        total = self._outputs(parts)
        step = -(-total // _SEARCHED_OUTPUTS)
        if step == 1:
            return self._weights(parts)
        drawn = [self._weight(part)[::step] for part in parts]
        return torch.cat(drawn).T.contiguous()

    def _install(
        self,
        parts: list[str],
        quantized: Quantized,
        scale_I: Tensor | None,
        input_scale: Tensor | None,
        num_tokens: int,
    ) -> None:
        stop = 0
        for part in parts:
            columns = slice(stop, stop + self.block.weights[part].shape[0])
            stop = columns.stop
            self.solved[part] = Solved(
                quantized=quantized,
                columns=columns,
                input_scale=input_scale,
                num_tokens=num_tokens,
            )
        if is_coded(self.scheme):
            dtype = self.block.weights[parts[0]].dtype
            coded = coded_linear(quantized, scale_I, dtype)
            for part in parts:
                self.block.coded[part] = coded, self.solved[part].columns
            return
        w_IO = dequantize(quantized.code_IO, quantized.scale_GO, quantized.zero_GO)
        if scale_I is not None:
            w_IO.div_(scale_I[:, None])
        for part in parts:
            w_OI = w_IO[:, self.solved[part].columns].T
            dtype = self.block.weights[part].dtype
            self.block.weights[part] = w_OI.to(dtype).contiguous()

    def result(self) -> BlockResult:
        """Everything of the block that is not as it was."""
        result = BlockResult(tensors={})
        for part, solved in self.solved.items():
            tensors, row = pack_linear(
                self.reader.entry(f"{self.prefix}.{part}.weight"),
                solved.quantized,
                solved.columns,
                self.scheme,
                input_scale=solved.input_scale,
            )
            result.tensors |= tensors
            result.rows.append(replace(row, tokens=solved.num_tokens))
        for name, tensor in self.smoothing.rewritten().items():
            result.tensors[name] = tensor
            result.rows.append(smoothed(self.reader.entry(name)))
        if self.cache is not None:
            scales = self.cache.scales(self.options.kv_cache_dtype)
            output = f"{self.prefix}.{self.block.architecture.output}"
            pairs = zip(KV_CACHE_PARTS, (scales.key, scales.value), strict=True)
            for part, scale in pairs:
                name = f"{output.rpartition('.')[0]}.{part}"
                result.tensors[name] = scale.cpu()
                result.rows.append(made(name))
        return result
