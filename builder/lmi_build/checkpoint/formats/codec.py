"""
A quantized linear as the tensors of a format, and back, bit for bit.

In memory every format is the same: unsigned codes and zero points, laid out with the
input channels first, and float32 scales; a weight is `(code - zero) * scale`. Encoding
refuses what the format would change, so that `decode(encode(x))` is always `x`.

Shape suffixes: I input channels, O output channels, G groups of I.

Sources: as in `layout` and `numerics.packing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from lmi_build.checkpoint.formats.layout import AUTOGPTQ, PARTS
from lmi_build.checkpoint.ledger import LedgerResult, LedgerRow
from lmi_build.checkpoint.writer import tensor_plan
from lmi_build.errors import SourceInvalid
from lmi_build.numerics.packing import (
    WORD_BITS,
    pack_columns,
    pack_interleaved,
    pack_rows,
    unpack_columns,
    unpack_interleaved,
    unpack_rows,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.checkpoint.header import TensorEntry
    from lmi_build.numerics.gptq import Quantized
    from lmi_build.values.quant import QuantScheme

# Signed 8-bit numbers on disk are unsigned codes less this.
INT8_MIDDLE = 128


class NotRepresentable(ValueError):
    """The format cannot say these numbers exactly; the message says which and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Codes:
    """
    One linear, out of any format.

    Args:
        code_IO: uint8 codes, or float8_e4m3fn values.
        scale_GO: float32 scales; G is 1 where a row or the whole matrix shares one.
        zero_GO: uint8 zero points; 0 for float8.
        group_I: int32 group of each input channel, or None where channel i is in
            group `i // (I / G)`.
    """

    code_IO: Tensor
    scale_GO: Tensor
    zero_GO: Tensor
    group_I: Tensor | None = None


# What can be encoded: a linear out of another format, or a method's result.
Encodable: TypeAlias = "Codes | Quantized"


def weight_of(codes: Codes) -> Tensor:
    """What codes mean: float32 weights [O, I]."""
    num_inputs, num_groups = codes.code_IO.shape[0], codes.scale_GO.shape[0]
    group_I = codes.group_I
    if group_I is None:
        group_I = torch.arange(num_inputs) // (num_inputs // num_groups)
    group_I = group_I.to(torch.int64)
    zero_IO = codes.zero_GO.to(torch.float32)[group_I]
    w_IO = (codes.code_IO.to(torch.float32) - zero_IO) * codes.scale_GO[group_I]
    return w_IO.T.contiguous()


def encode(
    name: str,
    quantized: Encodable,
    columns: slice,
    scheme: QuantScheme,
    *,
    input_scale: Tensor | None = None,
    group_I: Tensor | None = None,
) -> dict[str, Tensor]:
    """
    The tensors of one linear.

    Args:
        name: Module name, without `.weight`.
        quantized: Codes of this linear, or of several side by side along O.
        columns: This linear's outputs in them.
        scheme: The format.
        input_scale: Scale of the activations where the scheme says `static`.
        group_I: Group of each input channel, where it is not the plain one.

    Returns:
        Tensors by full name, as `layout.linear_plans` says.

    Raises:
        NotRepresentable: The format would change a number.
    """
    code_IO = quantized.code_IO[:, columns]
    zero_GO = quantized.zero_GO[:, columns]
    scale_GO = quantized.scale_GO[:, columns]
    _check_encodable(name, code_IO, zero_GO, scheme, group_I)
    scale_GO = _narrow_scale(name, scale_GO, scheme)
    if scheme.packing in AUTOGPTQ or scheme.packing == "awq":
        parts = _encode_classic(code_IO, scale_GO, zero_GO, scheme)
    else:
        parts = _encode_compressed(code_IO, scale_GO, zero_GO, scheme)
    if group_I is None:
        group_I = _plain_groups(code_IO, scale_GO)
    if scheme.packing in AUTOGPTQ:
        parts["g_idx"] = group_I
    elif scheme.act_order:
        parts["weight_g_idx"] = group_I
    if scheme.activation_scheme == "static":
        if input_scale is None:
            raise ValueError(f"`{name}` has static activations and no input scale")
        parts["input_scale"] = input_scale.to(torch.float32).reshape(1)
    return {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}


def _encode_classic(
    code_IO: Tensor, scale_GO: Tensor, zero_GO: Tensor, scheme: QuantScheme
) -> dict[str, Tensor]:
    bits = scheme.weight_bits
    if scheme.packing == "awq":
        packed, zeros = pack_interleaved(code_IO), pack_interleaved(zero_GO)
    else:
        stored_GO = zero_GO - 1 if scheme.packing == "gptq" else zero_GO
        packed = pack_rows(code_IO, bits=bits)
        zeros = pack_columns(stored_GO, bits=bits)
    return {"qweight": packed, "qzeros": zeros, "scales": scale_GO}


def _encode_compressed(
    code_IO: Tensor, scale_GO: Tensor, zero_GO: Tensor, scheme: QuantScheme
) -> dict[str, Tensor]:
    num_inputs, num_outputs = code_IO.shape
    parts: dict[str, Tensor] = {}
    if scheme.packing == "pack-quantized":
        parts["weight_packed"] = pack_columns(
            code_IO.T.contiguous(), bits=scheme.weight_bits
        )
        parts["weight_shape"] = torch.tensor([num_outputs, num_inputs])
        if not scheme.sym:
            parts["weight_zero_point"] = pack_rows(
                zero_GO.T.contiguous(), bits=scheme.weight_bits
            )
    else:
        parts["weight"] = _signed(code_IO.T)
        if not scheme.sym:
            parts["weight_zero_point"] = _signed(zero_GO.T)
    per_tensor = scheme.granularity == "tensor" and scheme.group_size == -1
    parts["weight_scale"] = scale_GO[0, :1] if per_tensor else scale_GO.T
    return parts


def _signed(code: Tensor) -> Tensor:
    """Unsigned codes as the signed numbers on disk; float8 as it is."""
    if code.dtype == torch.float8_e4m3fn:
        return code.contiguous()
    return (code.contiguous() ^ INT8_MIDDLE).view(torch.int8)


def _unsigned(number: Tensor) -> Tensor:
    return number.contiguous().view(torch.uint8) ^ INT8_MIDDLE


def _plain_groups(code_IO: Tensor, scale_GO: Tensor) -> Tensor:
    group = code_IO.shape[0] // scale_GO.shape[0]
    return (torch.arange(code_IO.shape[0]) // group).to(torch.int32)


def _check_encodable(
    name: str,
    code_IO: Tensor,
    zero_GO: Tensor,
    scheme: QuantScheme,
    group_I: Tensor | None,
) -> None:
    if scheme.weight_dtype == "float":
        if code_IO.dtype != torch.float8_e4m3fn or bool(zero_GO.any()):
            raise ValueError(f"`{name}`: float8 codes and zero points of 0 expected")
        return
    top = (1 << scheme.weight_bits) - 1
    if int(code_IO.max()) > top or int(zero_GO.max()) > top:
        raise NotRepresentable(
            f"`{name}` has codes or zero points above {top}, the largest of"
            f" {scheme.weight_bits} bits"
        )
    middle = 1 << (scheme.weight_bits - 1)
    if scheme.sym and bool((zero_GO != middle).any()):
        raise NotRepresentable(
            f"`{name}` has zero points other than {middle}, the one of a symmetric grid"
        )
    if scheme.packing == "gptq" and int(zero_GO.min()) == 0:
        raise NotRepresentable(
            f"`{name}` has zero points of 0; format `gptq` stores them minus one, and"
            " what that becomes differs between readers"
        )
    if group_I is not None and not scheme.act_order:
        what = "format `awq` has no group index"
        if scheme.packing != "awq":
            what = "readers look at the group index only where the scheme says so"
        raise NotRepresentable(f"`{name}` has channels in activation order; {what}")


def _narrow_scale(name: str, scale_GO: Tensor, scheme: QuantScheme) -> Tensor:
    """Scales in the dtype on disk; equal in number, or refused."""
    if scheme.granularity == "tensor" and scheme.group_size == -1:
        if bool((scale_GO != scale_GO[:, :1]).any()):
            raise NotRepresentable(f"`{name}` has more than one scale")
        scale_GO = scale_GO[:, :1]
    narrow_GO = scale_GO.to(getattr(torch, scheme.scale_dtype))
    changed = narrow_GO.to(torch.float32) != scale_GO
    if bool(changed.any()):
        first = float(scale_GO[changed][0])
        raise NotRepresentable(
            f"`{name}` has {int(changed.sum())} of {scale_GO.numel()} scales that are"
            f" not {scheme.scale_dtype} numbers, such as {first!r}"
        )
    return narrow_GO


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


def pack_linear(
    entry: TensorEntry,
    quantized: Quantized,
    columns: slice,
    scheme: QuantScheme,
    *,
    input_scale: Tensor | None = None,
) -> tuple[dict[str, Tensor], LedgerRow]:
    """
    The tensors of one linear with their ledger row.

    Args:
        entry: The weight as the source's header has it, in either orientation.
        quantized: Result of a method for the linears that share an input.
        columns: The linear's outputs in it.
        scheme: The format.
        input_scale: Scale of the activations where the scheme says `static`.

    Raises:
        NotRepresentable: The format would change a number.
    """
    name = entry.name.removesuffix(".weight")
    tensors = encode(name, quantized, columns, scheme, input_scale=input_scale)
    power = float(quantized.power_O[columns].sum())
    error = float(quantized.error_O[columns].sum())
    row = LedgerRow(
        source=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        action="quantized",
        results=tuple(_ledger_result(key, value) for key, value in tensors.items()),
        error=error / power if power > 0 else 0.0,
    )
    return tensors, row


def _ledger_result(name: str, tensor: Tensor) -> LedgerResult:
    plan = tensor_plan(name, tensor)
    return LedgerResult(name=name, dtype=plan.dtype, shape=plan.shape)
