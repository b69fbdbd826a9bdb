"""
Where the scales that AWQ and SmoothQuant take out of a layer's inputs go.

y = x W = (x / s)(s W). Dividing x by s costs nothing at run time if whatever makes x
already divides: the weight of the norm before, or the output rows of the linear
before. Both are exact, up to what the stored type can hold:

- A norm's weight is rounded to its stored type, and the scale that *this* stored weight
  divides by is the one the layer is multiplied with: s = w / stored. So the product is
  the model's own, whatever the rounding did.
- A linear that is already quantized takes the division by its scales, one per output
  row (and group); its codes stay. That rounds a scale to its stored type once more, at
  most 2**-12 of it for float16.

Shape suffixes: I input channels, R output rows of the linear before, G groups, D norm
channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.numerics.grids import round_scale

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.quantizers.decoder import Block
    from lmi_build.quantizers.solving import Solved
    from lmi_build.quantizers.steps import Absorb
    from lmi_build.values.quant import QuantScheme

# The least float16 with all its digits: no scale on disk is pushed below it.
_MIN_NORMAL = 2.0**-14


class Smoothing:
    """
    The scales of one block, and the float tensors that they change.

    Args:
        block: Its weights.
        prefix: Of its names, without the final dot.
        reader: The model.
    """

    def __init__(self, *, block: Block, prefix: str, reader: CheckpointReader) -> None:
        self.block = block
        self.prefix = prefix
        self.reader = reader
        self._decided: dict[tuple[str, str], Tensor] = {}
        self._device = next(iter(block.weights.values())).device
        # Full tensor name to its value in float32.
        self._changed: dict[str, Tensor] = {}
        self._multiplied: set[str] = set()

    def known(self, absorb: Absorb) -> Tensor | None:
        """The scale [I] that was decided for this place before, or None."""
        return self._decided.get((absorb.kind, absorb.name))

    def decide(
        self,
        absorb: Absorb,
        wish_I: Tensor,
        solved: Solved | None,
        scheme: QuantScheme,
    ) -> Tensor:
        """
        Take a scale out of what feeds a layer.

        Args:
            absorb: Where it goes.
            wish_I: The scale that was searched, above zero.
            solved: The linear of `absorb`, if it is already quantized.
            scheme: What is written.

        Returns:
            The scale that was really taken out, [I].
        """
        if absorb.kind == "norm":
            scale_I = self._into_norm(absorb, wish_I)
        elif solved is not None:
            scale_I = self._into_codes(absorb, wish_I, solved, scheme)
        else:
            scale_I = self._into_rows(absorb, wish_I)
        self._decided[absorb.kind, absorb.name] = scale_I
        return scale_I

    def _into_norm(self, absorb: Absorb, wish_I: Tensor) -> Tensor:
        """The norm's weight, and the scale that its rounding makes exact."""
        name = f"{self.prefix}.{absorb.name}.weight"
        stored_D = self._value(name)
        weight_D = stored_D + absorb.offset
        wish_D = wish_I
        if absorb.rows_I is not None:
            wish_D = torch.ones_like(weight_D)
            wish_D[absorb.rows_I] = wish_I
        divided_D = self._as_stored(name, weight_D / wish_D - absorb.offset)
        scale_D = weight_D / (divided_D + absorb.offset)
        usable_D = torch.isfinite(scale_D) & (scale_D > 0)
        self._changed[name] = torch.where(usable_D, divided_D, stored_D)
        scale_D = torch.where(usable_D, scale_D, torch.ones_like(scale_D))
        bias = f"{self.prefix}.{absorb.name}.bias"
        if bias in self.reader:
            self._changed[bias] = self._value(bias) / scale_D
        return scale_D if absorb.rows_I is None else scale_D[absorb.rows_I]

    def _into_codes(
        self, absorb: Absorb, wish_I: Tensor, solved: Solved, scheme: QuantScheme
    ) -> Tensor:
        """The scales of a linear that is quantized already."""
        scale_GR = solved.quantized.scale_GO[:, solved.columns]
        rows_R = self._by_row(absorb, wish_I, scale_GR.shape[1])
        limit_R = scale_GR.amin(dim=0) / _MIN_NORMAL
        rows_R = torch.minimum(rows_R, limit_R.clamp_min(1.0))
        scale_GR.copy_(round_scale(scale_GR / rows_R, scheme.scale_dtype))
        self._divide_bias(absorb, rows_R)
        return rows_R if absorb.rows_I is None else rows_R[absorb.rows_I]

    def _into_rows(self, absorb: Absorb, wish_I: Tensor) -> Tensor:
        """The rows of a linear that stays in float."""
        name = f"{self.prefix}.{absorb.name}.weight"
        weight = self._value(name)
        num_rows = self.block.weights[absorb.name].shape[0]
        rows_R = self._by_row(absorb, wish_I, num_rows)
        transposed = self.block.architecture.transposed
        self._changed[name] = weight / (rows_R if transposed else rows_R[:, None])
        self._divide_bias(absorb, rows_R)
        return rows_R if absorb.rows_I is None else rows_R[absorb.rows_I]

    def _by_row(self, absorb: Absorb, wish_I: Tensor, num_rows: int) -> Tensor:
        if absorb.rows_I is None:
            return wish_I
        rows_R = torch.ones(num_rows, device=wish_I.device)
        rows_R[absorb.rows_I] = wish_I
        return rows_R

    def _divide_bias(self, absorb: Absorb, rows_R: Tensor) -> None:
        name = f"{self.prefix}.{absorb.name}.bias"
        if name in self.reader:
            self._changed[name] = self._value(name) / rows_R

    def multiply(self, absorb: Absorb, linears: Iterable[str], scale_I: Tensor) -> None:
        """Multiply the inputs of whatever reads the same values and stays in float."""
        for part in dict.fromkeys((*absorb.readers, *linears)):
            name = f"{self.prefix}.{part}.weight"
            transposed = self.block.architecture.transposed and part in linears
            factor = scale_I[:, None] if transposed else scale_I
            if name not in self._multiplied:
                self._multiplied.add(name)
                self._changed[name] = self._value(name) * factor

    def _value(self, name: str) -> Tensor:
        """A float tensor as it stands now, in float32."""
        if name in self._changed:
            return self._changed[name]
        return self.reader.read(name).to(self._device).float()

    def _as_stored(self, name: str, value: Tensor) -> Tensor:
        dtype = getattr(torch, self.reader.entry(name).dtype)
        return value.to(dtype).float()

    def rewritten(self) -> dict[str, Tensor]:
        """Every float tensor that changed, in its stored type, by full name."""
        return {
            name: value.to(getattr(torch, self.reader.entry(name).dtype)).cpu()
            for name, value in self._changed.items()
        }
