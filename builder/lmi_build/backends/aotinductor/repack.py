"""
Codes of every checkpoint format as the linears' two layouts, bit for bit.

Nothing is rounded, and what could not be said exactly is refused; only a head is
rounded, where a recipe asks for it.

Shape suffixes: I input channels, O outputs, G groups of I, g channels of a group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.backends.aotinductor.linears import (
    CodedLinear,
    FloatLinear,
    GroupedLinear,
)
from lmi_build.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from lmi_build.checkpoint.formats.codec import Codes
    from lmi_build.values.quant import QuantScheme

_NIBBLE = 4
# Unsigned 8-bit codes less this are the signed ones.
_MIDDLE = 128
# Channels that share a scale in a head that is rounded here.
HEAD_GROUP = 64


def is_integer_product(scheme: QuantScheme) -> bool:
    """Whether a checkpoint means products of 8-bit numbers."""
    return scheme.activation_dtype == "int" and scheme.activation_scheme != "none"


def coded_linear(
    codes: Codes, step: Tensor | None, bias_O: Tensor | None = None
) -> CodedLinear:
    """
    A linear of 8-bit products.

    Args:
        codes: Symmetric 8-bit ones, a scale per output.
        step: `input_scale`, where the checkpoint has one.
        bias_O: Of the linear.
    """
    code_OI = (codes.code_IO.t().contiguous() ^ _MIDDLE).view(torch.int8)
    scale_O = codes.scale_GO[0].contiguous().clone()
    step = None if step is None else step.float().reshape(1)
    return CodedLinear(code_OI, scale_O, step, bias_O)


def grouped_linear(
    name: str, codes: Codes, scheme: QuantScheme, bias_O: Tensor | None = None
) -> GroupedLinear:
    """
    A linear of codes with a scale per group.

    Args:
        name: Of the linear, for messages.
        codes: Out of any format.
        scheme: What the format is.
        bias_O: Of the linear.

    Raises:
        Unsupported: `compile.weights-refused`.
    """
    num_inputs, groups = codes.code_IO.shape[0], codes.scale_GO.shape[0]
    is_packed = scheme.weight_bits == _NIBBLE
    if num_inputs % groups or (is_packed and num_inputs // groups % 2):
        raise Unsupported(
            f"`{name}` has {num_inputs} input channels in {groups} groups, which are"
            " not equally long, or not even",
            code="compile.weights-refused",
            hints=("quantize with a `group_size` that divides every layer",),
        )
    order_I = _order(name, codes, num_inputs // groups)
    code_IO = codes.code_IO if order_I is None else codes.code_IO[order_I]
    code_OGg = code_IO.t().reshape(-1, groups, num_inputs // groups)
    zero_OG = codes.zero_GO.t()
    if is_packed:
        plain = bool((zero_OG == _MIDDLE >> _NIBBLE).all())
        low, high = code_OGg.chunk(2, -1)
        packed, zero = low | (high << _NIBBLE), zero_OG
    else:
        plain = bool((zero_OG == _MIDDLE).all())
        packed = (code_OGg.contiguous() ^ _MIDDLE).view(torch.int8)
        zero = (zero_OG.contiguous() ^ _MIDDLE).view(torch.int8)
    return GroupedLinear(
        packed.contiguous(),
        _narrowed(codes.scale_GO.t().contiguous()),
        None if plain else zero.contiguous(),
        order_I,
        bias_O,
    )


def _order(name: str, codes: Codes, size: int) -> Tensor | None:
    """Channels sorted by group, or None when they already are."""
    if codes.group_I is None:
        return None
    plain = torch.arange(codes.group_I.shape[0]) // size
    if torch.equal(codes.group_I.long(), plain):
        return None
    order_I = torch.argsort(codes.group_I, stable=True)
    if not torch.equal(codes.group_I[order_I].long(), plain):
        raise Unsupported(
            f"`{name}`: g_idx does not fill its groups with {size} channels each",
            code="compile.weights-refused",
            hints=("quantize with `desc_act: false`",),
        )
    return order_I


def _narrowed(scale_OG: Tensor) -> Tensor:
    """The same scales in the smallest type that holds each of them."""
    for dtype in (torch.float16, torch.bfloat16):
        narrow = scale_OG.to(dtype)
        if torch.equal(narrow.float(), scale_OG):
            return narrow
    return scale_OG


def round_head(head: FloatLinear) -> GroupedLinear:
    """A float head as 8-bit codes with a scale for each group of channels."""
    weight_OI = head.weight.float()
    outputs, inputs = weight_OI.shape
    size = HEAD_GROUP if inputs % HEAD_GROUP == 0 else inputs
    weight_OGg = weight_OI.view(outputs, -1, size)
    scale_OG = weight_OGg.abs().amax(-1).div(127.0).clamp_min(2.0**-40)
    code = (weight_OGg / scale_OG[..., None]).round().to(torch.int8)
    return GroupedLinear(code, scale_OG, None, None, head.bias)
