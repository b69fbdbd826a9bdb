"""
What the headers of a quantized checkpoint say of its linears, before a byte is read.

Light: the planner finds out with it that a configuration and its tensors do not belong
together, with the tensor's name and both shapes.

Shapes: I input channels, O output channels, G groups of I.

Sources: as in `layout`; for NVIDIA's Model Optimizer, as in `modelopt`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from lmi_build.checkpoint.formats.layout import (
    AUTOGPTQ,
    MARKS,
    PARTS,
    WORD_BITS,
    linear_plans,
    words,
)
from lmi_build.values.quant import MODELOPT, QuantScheme

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.checkpoint.formats.layout import Shapes

MODELOPT_MARK = "weight_scale"
MODELOPT_PARTS = ("weight", "weight_scale", "pre_quant_scale")
_FLOATS = frozenset({"float16", "bfloat16", "float32"})
# A reader makes up the plain index where there is none.
_OPTIONAL = frozenset({"g_idx", "weight_g_idx"})
# One number may stand as [], [1] or [1, 1], a column as [O] or [O, 1].
_SCALES = frozenset({"weight_scale", "input_scale"})


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedLinear:
    """
    One quantized linear, as its tensors' shapes say.

    Args:
        name: Module name, without any tensor's.
        num_outputs: O.
        num_inputs: I; of a packing that fills up its last word, what the words hold.
        parts: Its tensors: part to dtype and shape.
    """

    name: str
    num_outputs: int
    num_inputs: int
    parts: Mapping[str, tuple[str, tuple[int, ...]]]


def mark_of(scheme: QuantScheme) -> str:
    """The tensor that says, by being there, that a linear is quantized."""
    return MODELOPT_MARK if scheme.packing == MODELOPT else MARKS[scheme.packing]


def parts_of(scheme: QuantScheme) -> tuple[str, ...]:
    """Every tensor that a quantized linear may have, after its module's name."""
    return MODELOPT_PARTS if scheme.packing == MODELOPT else PARTS[scheme.packing]


def linears_in(shapes: Shapes, scheme: QuantScheme) -> tuple[QuantizedLinear, ...]:
    """
    Every quantized linear of a checkpoint, by name.

    Args:
        shapes: Tensor name to dtype and shape.
        scheme: What its configuration says.

    Raises:
        ValueError: The tensor that holds a linear's codes is missing or no matrix.
    """
    mark = "." + mark_of(scheme)
    names = sorted(x.removesuffix(mark) for x in shapes if x.endswith(mark))
    return tuple(_linear(name, shapes, scheme) for name in names)


def _linear(name: str, shapes: Shapes, scheme: QuantScheme) -> QuantizedLinear:
    parts = {
        part: shapes[f"{name}.{part}"]
        for part in parts_of(scheme)
        if f"{name}.{part}" in shapes
    }
    codes = parts_of(scheme)[0]
    if codes not in parts:
        raise ValueError(f"`{name}` has no tensor `{codes}`")
    shape = parts[codes][1]
    if len(shape) != len("OI"):
        raise ValueError(f"`{name}.{codes}` has shape {list(shape)}, not two sizes")
    num_outputs, num_inputs = _widths(shape, scheme)
    return QuantizedLinear(
        name=name, num_outputs=num_outputs, num_inputs=num_inputs, parts=parts
    )


def _widths(shape: tuple[int, ...], scheme: QuantScheme) -> tuple[int, int]:
    """O and I of the matrix that holds the codes."""
    first, second = shape
    bits = scheme.weight_bits
    if scheme.packing in AUTOGPTQ:
        return second, first * WORD_BITS // bits
    if scheme.packing == "awq":
        return second * WORD_BITS // bits, first
    if scheme.packing == "pack-quantized":
        return first, second * WORD_BITS // bits
    if scheme.packing == MODELOPT:
        # Two outputs share a byte.
        return 2 * first, second
    return first, second


def expected_parts(
    linear: QuantizedLinear, scheme: QuantScheme
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Part to dtype and shape, as the configuration means a linear of these widths."""
    size = linear.num_inputs if scheme.group_size == -1 else scheme.group_size
    if scheme.packing == MODELOPT:
        num_groups = -(-linear.num_inputs // size)
        return {
            "weight": ("uint8", (linear.num_outputs // 2, linear.num_inputs)),
            "weight_scale": ("float32", (linear.num_outputs, num_groups)),
        }
    plans = {
        plan.name.rpartition(".")[2]: (plan.dtype, plan.shape)
        for plan in linear_plans(linear, scheme)
    }
    if scheme.packing in AUTOGPTQ and linear.num_inputs % size:
        # AutoGPTQ lets the last group be shorter.
        num_groups = -(-linear.num_inputs // size)
        for part in ("qzeros", "scales"):
            dtype, shape = plans[part]
            plans[part] = (dtype, (num_groups, shape[1]))
    return plans


def misfits(linear: QuantizedLinear, scheme: QuantScheme) -> Iterator[str]:
    """
    Yield what is wrong with a linear's tensors, with names and both shapes.

    Args:
        linear: As `linears_in` found it.
        scheme: What the configuration says.
    """
    size = linear.num_inputs if scheme.group_size == -1 else scheme.group_size
    if linear.num_inputs % size and scheme.packing not in AUTOGPTQ:
        yield (
            f"`{linear.name}` has {linear.num_inputs} input channels, which groups of"
            f" {size} do not divide"
        )
        return
    for part, wanted in expected_parts(linear, scheme).items():
        found = linear.parts.get(part)
        if found is None:
            if part not in _OPTIONAL or scheme.act_order:
                yield f"`{linear.name}` has no tensor `{part}`"
        elif not _fits(part, found, wanted, linear, scheme):
            yield (
                f"`{linear.name}.{part}` is {_text(found)}; {_meaning(scheme)} means"
                f" {_text(wanted)}"
            )


def _fits(
    part: str,
    found: tuple[str, tuple[int, ...]],
    wanted: tuple[str, tuple[int, ...]],
    linear: QuantizedLinear,
    scheme: QuantScheme,
) -> bool:
    dtype, shape = found
    if part == "weight_zero_point" and dtype == "int8":
        # compressed-tensors before 0.9 did not pack them.
        return prod(shape) == prod(expected_parts(linear, scheme)["weight_scale"][1])
    kinds = _FLOATS if wanted[0] in _FLOATS else {wanted[0]}
    if dtype not in kinds:
        return False
    if part in _SCALES and scheme.group_size == -1:
        return prod(shape) == prod(wanted[1])
    return shape == wanted[1]


def _meaning(scheme: QuantScheme) -> str:
    grouping = f"`group_size: {scheme.group_size}`" if scheme.group_size > 0 else ""
    bits = f"`{scheme.packing}` of {scheme.weight_bits} bits"
    return f"{bits} with {grouping}" if grouping else bits


def _text(found: tuple[str, tuple[int, ...]]) -> str:
    return f"{found[0]} {list(found[1])}"


def same_width(linear: QuantizedLinear, num_inputs: int, scheme: QuantScheme) -> bool:
    """Whether a linear's words hold so many input channels, the last in part."""
    if scheme.packing not in {*AUTOGPTQ, "pack-quantized"}:
        return linear.num_inputs == num_inputs
    bits = scheme.weight_bits
    return words(num_inputs, bits) == words(linear.num_inputs, bits)


def with_scale_dtype(scheme: QuantScheme, shapes: Shapes) -> QuantScheme:
    """The scheme with the dtype that most scales have on disk."""
    part = "scales" if scheme.packing in {*AUTOGPTQ, "awq"} else "weight_scale"
    found = [dtype for name, (dtype, _) in shapes.items() if name.endswith(f".{part}")]
    if not found:
        return scheme
    return replace(scheme, scale_dtype=max(sorted(set(found)), key=found.count))
