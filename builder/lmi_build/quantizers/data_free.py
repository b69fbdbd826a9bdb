"""The built-in methods that look at weights alone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from lmi_build.checkpoint.formats.codec import pack_linear
from lmi_build.quantizers.finite import read_finite
from lmi_build.quantizers.head import round_head
from lmi_build.quantizers.lanes import lanes_for
from lmi_build.quantizers.methods import round_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmi_build.checkpoint.ledger import LedgerRow
    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.quantizers.options import Options
    from lmi_build.quantizers.targets import Linear
    from lmi_build.values.quant import QuantScheme


class DataFreeWork:
    """
    The linears of a model, a block of them at a time.

    Args:
        reader: The model.
        linears: What to quantize.
        options: What the recipe decided.
        scheme: What is written.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        linears: tuple[Linear, ...],
        options: Options,
        scheme: QuantScheme,
    ) -> None:
        self.reader = reader
        self.options = options
        self.scheme = scheme
        self._reading = threading.Lock()
        # Rounding is many small operations; see `lanes`.
        self._lanes = lanes_for(torch.device("cpu"))
        self._blocks: dict[str, list[Linear]] = {}
        for linear in linears:
            self._blocks.setdefault(linear.block, []).append(linear)
        self.num_blocks = len(self._blocks)

    def step(self, index: int) -> tuple[dict[str, Tensor], tuple[LedgerRow, ...], None]:
        """Round one block's linears."""
        tensors: dict[str, Tensor] = {}
        rows: list[LedgerRow] = []
        linears = self._blocks[list(self._blocks)[index]]
        for packed, row in self._lanes.map(self._round, linears):
            tensors |= packed
            rows.append(row)
        return tensors, tuple(rows), None

    def _round(self, linear: Linear) -> tuple[Mapping[str, Tensor], LedgerRow]:
        with self._reading:
            weight = read_finite(self.reader, linear.source)
        if linear.is_head:
            quantized = round_head(weight, None, self.options, self.scheme)
        else:
            w_IO = (weight if linear.transposed else weight.T).float().contiguous()
            quantized = round_weights(w_IO, None, self.options, self.scheme)
        return pack_linear(
            self.reader.entry(linear.source),
            quantized,
            slice(None),
            self.scheme,
            shared_as=linear.name if linear.shared else "",
        )
