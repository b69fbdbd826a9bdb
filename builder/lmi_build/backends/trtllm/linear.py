"""
A linear as TensorRT-LLM has it: fused from parts, cut for one rank.

A rank holds whole outputs of `qkv`, `fc` and `gate` and whole inputs of `dense` and
`proj`. Cutting and joining work on codes, so nothing is rounded; a cut that goes
through a group of inputs is refused, because both ranks would need the group's scale
and zero point, and TensorRT-LLM gives a group to one rank.

Shape suffixes: I input channels, O output channels, G groups of I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from lmi_build.checkpoint.formats.codec import Codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.numerics.gptq import Quantized

# Codes out of a checkpoint or a method, or float weights [O, I].
Part: TypeAlias = "Codes | Quantized | Tensor"
# `qkv` always has a scale per output; `row` is cut along its inputs: `dense`, `proj`.
Role: TypeAlias = Literal["qkv", "column", "row"]


class Inexact(ValueError):
    """The layout cannot say these numbers exactly; the message says which and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedLinear:
    """
    One linear of one rank.

    Args:
        parts: Stacked along the outputs in this order; all codes or all float.
        dtype: Of the checkpoint (`dtype` in its config.json), such as `float16`.
        role: Where it stands in its layer.
        bias: float [O], or None.
        input_scale: float32 [1] or one number per part: what one step of the inputs'
            int8 numbers is, where activations are static; parts share the largest.
        zero_points: Whether the checkpoint says `has_zero_point`.
    """

    parts: tuple[Part, ...]
    dtype: str
    role: Role = "column"
    bias: Tensor | None = None
    input_scale: Tensor | None = None
    zero_points: bool = False


def cut_outputs(part: Part, first: int, last: int) -> Part:
    """Outputs `first` up to `last` of a part, as views."""
    if isinstance(part, Tensor):
        return part[first:last]
    return Codes(
        code_IO=part.code_IO[:, first:last],
        scale_GO=part.scale_GO[:, first:last],
        zero_GO=part.zero_GO[:, first:last],
        group_I=_group_index(part),
    )


def cut_inputs(part: Part, first: int, last: int) -> Part:
    """
    Inputs `first` up to `last` of a part, as views.

    Raises:
        Inexact: The cut goes through a group, or groups do not lie together.
    """
    if isinstance(part, Tensor):
        return part[:, first:last]
    if _group_index(part) is not None:
        raise Inexact("its groups hold channels that do not lie together")
    num_inputs, num_groups = part.code_IO.shape[0], part.scale_GO.shape[0]
    groups = slice(None)
    if num_groups > 1:
        size = num_inputs // num_groups
        if first % size or last % size:
            raise Inexact(
                f"a rank's inputs {first} to {last} cut through groups of {size}"
            )
        groups = slice(first // size, last // size)
    return Codes(
        code_IO=part.code_IO[first:last],
        scale_GO=part.scale_GO[groups],
        zero_GO=part.zero_GO[groups],
    )


def join_outputs(parts: Sequence[Part]) -> Codes | Tensor:
    """
    Parts one below the other.

    Raises:
        Inexact: Groups do not lie together.
        ValueError: Float and codes are mixed, or group sizes differ.
    """
    floats = [part for part in parts if isinstance(part, Tensor)]
    codes = [part for part in parts if not isinstance(part, Tensor)]
    if floats and codes:
        raise ValueError("a fused linear has both quantized and float parts")
    if floats:
        return floats[0] if len(floats) == 1 else torch.cat(floats)
    if any(_group_index(part) is not None for part in codes):
        raise Inexact("its groups hold channels that do not lie together")
    if len({part.scale_GO.shape[0] for part in codes}) > 1:
        raise ValueError("parts of a fused linear have groups of different sizes")
    return Codes(
        code_IO=_beside([part.code_IO for part in codes]),
        scale_GO=_beside([part.scale_GO for part in codes]),
        zero_GO=_beside([part.zero_GO for part in codes]),
    )


def _beside(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)


def _group_index(part: Codes | Quantized) -> Tensor | None:
    """The group index, where it is not the plain one; a method's result has none."""
    return part.group_I if isinstance(part, Codes) else None


def exactly(numbers: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """
    The same numbers in another dtype.

    Raises:
        Inexact: A number changes.
    """
    narrow = numbers.to(dtype)
    changed = narrow.to(torch.float32) != numbers.to(torch.float32)
    if bool(changed.any()):
        first = float(numbers[changed][0])
        raise Inexact(
            f"{int(changed.sum())} of {numbers.numel()} {what} are not"
            f" {str(dtype).removeprefix('torch.')} numbers, such as {first!r}"
        )
    return narrow


def middle_zeros(codes: Codes | Quantized, bits: int) -> bool:
    """Whether every zero point is the symmetric grid's."""
    return bool((codes.zero_GO == 1 << (bits - 1)).all())


def check_symmetric(codes: Codes | Quantized, bits: int, layout: str) -> None:
    """
    Refuse codes that a grid without zero points does not have.

    Args:
        codes: Unsigned codes.
        bits: 4 or 8.
        layout: Name for the message.

    Raises:
        Inexact: A zero point is not the middle, or a code needs more bits.
    """
    if not middle_zeros(codes, bits):
        raise Inexact(f"{layout} has no zero points, and these weights have")
    check_bits(codes, bits, layout)


def check_bits(codes: Codes | Quantized, bits: int, layout: str) -> None:
    """Refuse codes that need more bits: raises `Inexact`."""
    # Eight bits are all that a byte has.
    if bits < 8 and int(codes.code_IO.max()) >> bits:  # noqa: PLR2004
        raise Inexact(f"{layout} has {bits}-bit codes, and one is larger")


def signed_codes(codes: Codes | Quantized, bits: int, layout: str) -> Tensor:
    """`around_middle` of codes that `check_symmetric` finds nothing wrong with."""
    check_symmetric(codes, bits, layout)
    return around_middle(codes, bits)


def around_middle(codes: Codes | Quantized, bits: int) -> Tensor:
    """Codes less the middle of their range: int8 [O, I]."""
    middle = 1 << (bits - 1)
    code_OI = codes.code_IO.T.contiguous()
    if bits == 8:  # noqa: PLR2004
        return (code_OI ^ middle).view(torch.int8)
    return code_OI.view(torch.int8) - middle
