"""
A quantized linear, read from the tensors of a format.

Shape suffixes: I input channels, O output channels, G groups of I.

Sources: as in `layout` and `numerics.packing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.checkpoint.formats.codes import INT8_MIDDLE, Codes
from lmi_build.checkpoint.formats.layout import AUTOGPTQ, PARTS
from lmi_build.errors import SourceInvalid
from lmi_build.numerics.packing import (
    WORD_BITS,
    unpack_columns,
    unpack_interleaved,
    unpack_rows,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmi_build.values.quant import QuantScheme


def _unsigned(number: Tensor) -> Tensor:
    return number.contiguous().view(torch.uint8) ^ INT8_MIDDLE


def decode(tensors: Mapping[str, Tensor], name: str, scheme: QuantScheme) -> Codes:
    """
    Read one linear.

    Args:
        tensors: Its tensors by full name; others are not looked at.
        name: Module name, without `.weight`.
        scheme: The format; its `scale_dtype` does not matter.

    Returns:
        Its codes; `group_I` only where it is not the plain one.

    Raises:
        SourceInvalid: `checkpoint.format`: a tensor is missing or does not fit.
    """
    own = {
        part: tensors[f"{name}.{part}"]
        for part in PARTS[scheme.packing]
        if f"{name}.{part}" in tensors
    }
    try:
        if scheme.packing in AUTOGPTQ:
            codes = _decode_gptq(own, scheme)
        elif scheme.packing == "awq":
            codes = _decode_awq(own)
        else:
            codes = _decode_compressed(own, scheme)
        _check_groups(codes, scheme)
    except KeyError as error:
        raise _misfit(f"`{name}` has no tensor `{error.args[0]}`") from error
    except _Misfit as error:
        raise _misfit(f"`{name}`: {error}") from error
    return codes


class _Misfit(ValueError):
    """A tensor is not what the format says."""


def _misfit(message: str) -> SourceInvalid:
    return SourceInvalid(
        message,
        code="checkpoint.format",
        hints=(
            "check that `quantization_config` in config.json belongs to these weights",
            "fetch the checkpoint again",
        ),
    )


def _decode_gptq(own: Mapping[str, Tensor], scheme: QuantScheme) -> Codes:
    bits = scheme.weight_bits
    scale_GO = _scales(own["scales"])
    num_groups, num_outputs = scale_GO.shape
    _expect("qweight", own["qweight"], columns=num_outputs)
    if own["qweight"].shape[0] * WORD_BITS % bits:
        raise _Misfit(f"qweight has {own['qweight'].shape[0]} rows for {bits} bits")
    code_IO = unpack_rows(own["qweight"], bits=bits)
    _expect("qzeros", own["qzeros"], rows=num_groups)
    zero_GO = unpack_columns(own["qzeros"], bits=bits)
    _expect("qzeros", zero_GO, at_least=num_outputs)
    zero_GO = zero_GO[:, :num_outputs]
    if scheme.packing == "gptq":
        zero_GO = (zero_GO + 1) & ((1 << bits) - 1)
    return Codes(
        code_IO=code_IO,
        scale_GO=scale_GO,
        zero_GO=zero_GO,
        group_I=_group_index(
            own.get("g_idx"), code_IO.shape[0], num_groups, scheme.group_size
        ),
    )


def _decode_awq(own: Mapping[str, Tensor]) -> Codes:
    scale_GO = _scales(own["scales"])
    code_IO = unpack_interleaved(own["qweight"])
    zero_GO = unpack_interleaved(own["qzeros"])
    _expect("qweight", code_IO, columns=scale_GO.shape[1])
    _expect("qzeros", zero_GO, rows=scale_GO.shape[0], columns=scale_GO.shape[1])
    return Codes(code_IO=code_IO, scale_GO=scale_GO, zero_GO=zero_GO)


def _decode_compressed(own: Mapping[str, Tensor], scheme: QuantScheme) -> Codes:
    bits = scheme.weight_bits
    if scheme.packing == "pack-quantized":
        num_outputs, num_inputs = (int(size) for size in own["weight_shape"].tolist())
        code_OI = unpack_columns(own["weight_packed"], bits=bits)[:, :num_inputs]
        _expect("weight_packed", code_OI, rows=num_outputs, columns=num_inputs)
    elif scheme.weight_dtype == "float":
        code_OI = own["weight"]
        num_outputs, num_inputs = code_OI.shape
    else:
        code_OI = _unsigned(own["weight"])
        num_outputs, num_inputs = code_OI.shape
    scale_OG = own["weight_scale"]
    if scale_OG.numel() == 1 and num_outputs > 1:
        scale_OG = scale_OG.reshape(1, 1).expand(num_outputs, 1)
    if scale_OG.ndim == 1:
        scale_OG = scale_OG[:, None]
    _expect("weight_scale", scale_OG, rows=num_outputs)
    zero_OG = _zeros_of(own, scheme, scale_OG)
    code_IO = code_OI.T.contiguous()
    return Codes(
        code_IO=code_IO,
        scale_GO=_scales(scale_OG.T),
        zero_GO=zero_OG.T.contiguous(),
        group_I=_group_index(
            own.get("weight_g_idx"), num_inputs, scale_OG.shape[1], scheme.group_size
        ),
    )


def _zeros_of(
    own: Mapping[str, Tensor], scheme: QuantScheme, scale_OG: Tensor
) -> Tensor:
    """Zero points [O, G], unsigned."""
    num_outputs, num_groups = scale_OG.shape
    if scheme.weight_dtype == "float":
        return torch.zeros(num_outputs, num_groups, dtype=torch.uint8)
    middle = 1 << (scheme.weight_bits - 1)
    stored = own.get("weight_zero_point")
    if stored is None:
        if not scheme.sym:
            raise KeyError("weight_zero_point")
        return torch.full((num_outputs, num_groups), middle, dtype=torch.uint8)
    if stored.dtype == torch.int32:
        zero_OG = unpack_rows(stored, bits=scheme.weight_bits)[:num_outputs]
    else:
        # Versions before 0.9 did not pack them; signed, as the codes are.
        zero_OG = (stored.to(torch.int16) + middle).to(torch.uint8)
    zero_OG = zero_OG.reshape(num_outputs, -1)
    _expect("weight_zero_point", zero_OG, columns=num_groups)
    if scheme.sym and bool((zero_OG != middle).any()):
        raise _Misfit("it has zero points, the configuration says `symmetric`")
    return zero_OG


def _scales(scale: Tensor) -> Tensor:
    if not scale.dtype.is_floating_point or scale.ndim != len("GO"):
        raise _Misfit(f"scales are {scale.dtype} {list(scale.shape)}")
    if not bool(torch.isfinite(scale).all()):
        raise _Misfit("scales hold infinite or undefined numbers")
    return scale.to(torch.float32).contiguous()


def _expect(
    part: str,
    tensor: Tensor,
    *,
    rows: int | None = None,
    columns: int | None = None,
    at_least: int = 0,
) -> None:
    shape = tuple(tensor.shape)
    wanted = (rows, columns)
    if len(shape) != len(wanted) or any(
        want not in {None, have} for want, have in zip(wanted, shape, strict=True)
    ):
        need = ["any" if size is None else str(size) for size in wanted]
        raise _Misfit(f"{part} is {list(shape)}, not [{', '.join(need)}]")
    if shape[1] < at_least:
        raise _Misfit(f"{part} is {list(shape)}, it needs {at_least} columns")


def _check_groups(codes: Codes, scheme: QuantScheme) -> None:
    num_inputs, num_groups = codes.code_IO.shape[0], codes.scale_GO.shape[0]
    size = num_inputs if scheme.group_size == -1 else scheme.group_size
    # AutoGPTQ lets the last group be shorter; the others never write such a layer.
    ragged = scheme.packing in AUTOGPTQ and num_groups == -(-num_inputs // size)
    if num_groups * size != num_inputs and not ragged:
        raise _Misfit(
            f"it has {num_groups} groups of scales; {num_inputs} input channels in"
            f" groups of {size} need {num_inputs / size:g}"
        )


def _group_index(
    stored: Tensor | None, num_inputs: int, num_groups: int, group_size: int
) -> Tensor | None:
    """The group of each channel, or None where it is the plain one."""
    size = num_inputs if group_size == -1 else group_size
    # compressed-tensors marked an index that is not in use with -1.
    if stored is None or bool((stored == -1).all()):
        stored = torch.arange(num_inputs) // size
    if tuple(stored.shape) != (num_inputs,):
        raise _Misfit(f"the group index is {list(stored.shape)}, not [{num_inputs}]")
    if int(stored.min()) < 0 or int(stored.max()) >= num_groups:
        raise _Misfit(
            f"the group index reaches from {int(stored.min())} to {int(stored.max())},"
            f" there are {num_groups} groups"
        )
    if num_inputs % num_groups == 0:
        plain = torch.arange(num_inputs) // (num_inputs // num_groups)
        if torch.equal(stored.to(torch.int64), plain):
            return None
    return stored.to(torch.int32)
