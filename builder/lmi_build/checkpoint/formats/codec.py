"""
A quantized linear as the tensors of a format, and back, bit for bit.

In memory every format is the same: unsigned codes and zero points, laid out with the
input channels first, and float32 scales; a weight is `(code - zero) * scale`. Encoding
refuses what the format would change, so that `decode(encode(x))` is always `x`.

Shape suffixes: I input channels, O output channels, G groups of I.

Sources: as in `layout` and `numerics.packing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from lmi_build.checkpoint.formats.codes import INT8_MIDDLE, Codes, weight_of
from lmi_build.checkpoint.formats.decoding import decode
from lmi_build.checkpoint.formats.layout import AUTOGPTQ
from lmi_build.checkpoint.ledger import LedgerResult, LedgerRow, copied
from lmi_build.checkpoint.writer import tensor_plan
from lmi_build.numerics.packing import (
    pack_columns,
    pack_interleaved,
    pack_rows,
)

if TYPE_CHECKING:
    from lmi_build.checkpoint.header import TensorEntry
    from lmi_build.numerics.gptq import Quantized
    from lmi_build.values.quant import QuantScheme

__all__ = [
    "Codes",
    "Encodable",
    "NotRepresentable",
    "decode",
    "encode",
    "pack_linear",
    "weight_of",
]


class NotRepresentable(ValueError):
    """The format cannot say these numbers exactly; the message says which and why."""


# What can be encoded: a linear out of another format, or a method's result.
Encodable: TypeAlias = "Codes | Quantized"


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


def pack_linear(
    entry: TensorEntry,
    quantized: Quantized,
    columns: slice,
    scheme: QuantScheme,
    *,
    input_scale: Tensor | None = None,
    shared_as: str = "",
) -> tuple[dict[str, Tensor], LedgerRow]:
    """
    The tensors of one linear with their ledger row.

    Args:
        entry: The weight as the source's header has it, in either orientation.
        quantized: Result of a method for the linears that share an input.
        columns: The linear's outputs in it.
        scheme: The format.
        input_scale: Scale of the activations where the scheme says `static`.
        shared_as: Module name of a linear whose weight is another's as well, which
            stays as it is; empty where the weight is the linear's own.

    Raises:
        NotRepresentable: The format would change a number.
    """
    name = shared_as or entry.name.removesuffix(".weight")
    tensors = encode(name, quantized, columns, scheme, input_scale=input_scale)
    power = float(quantized.power_O[columns].sum())
    error = float(quantized.error_O[columns].sum())
    kept = copied(entry).results if shared_as else ()
    made = [_ledger_result(key, value) for key, value in tensors.items()]
    row = LedgerRow(
        source=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        action="quantized",
        results=(*kept, *made),
        error=error / power if power > 0 else 0.0,
    )
    return tensors, row


def _ledger_result(name: str, tensor: Tensor) -> LedgerResult:
    plan = tensor_plan(name, tensor)
    return LedgerResult(name=name, dtype=plan.dtype, shape=plan.shape)
