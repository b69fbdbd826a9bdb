"""
Whether another format can say exactly what a quantized checkpoint says.

Zero points, activation order and the digits of scales are known from the tensors alone,
so every layer is decoded once before anything is promised.

Shape suffixes: I input channels, O output channels, G groups of I.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.checkpoint.formats.layout import (
    AUTOGPTQ,
    BITS,
    MARKS,
    PARTS,
    SCALE_DTYPES,
)
from lmi_build.errors import SourceInvalid, Unsupported
from lmi_build.values.quant import COMPRESSED_TENSORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmi_build.checkpoint.formats.codec import Codes
    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.values.quant import QuantScheme


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertedLinear:
    """
    One linear of the checkpoint.

    Args:
        name: Module name.
        num_outputs: O.
        num_inputs: I.
    """

    name: str
    num_outputs: int
    num_inputs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """
    What a pass over all layers saw.

    Args:
        linears: Every quantized layer.
        sym: All zero points are in the middle.
        lowest_zero: The smallest zero point of any layer.
        act_order: Some layer's groups do not lie together.
        float16: All scales are float16 numbers.
        scale_dtypes: Of the scales on disk.
    """

    linears: tuple[ConvertedLinear, ...]
    sym: bool
    lowest_zero: int
    act_order: bool
    float16: bool
    scale_dtypes: frozenset[str]


def survey(
    reader: CheckpointReader, scheme: QuantScheme, told: Callable[[int, int], None]
) -> Survey:
    """
    Look at every layer of a checkpoint, one at a time.

    Args:
        reader: The checkpoint.
        scheme: What its configuration says.
        told: Given the number of layers done and their total.

    Raises:
        SourceInvalid: `checkpoint.format`: there are no such tensors, or they are of
            another form.
    """
    import torch

    mark = "." + MARKS[scheme.packing]
    names = [x.removesuffix(mark) for x in reader.tensors if x.endswith(mark)]
    if not names:
        raise SourceInvalid(
            f"`{reader.folder}` has no tensor `*{mark}`, though its configuration says"
            f" `{scheme.packing}`",
            code="checkpoint.format",
            hints=("check that config.json belongs to these weights",),
        )
    linears: list[ConvertedLinear] = []
    sym, act_order, float16, lowest = True, False, True, 255
    middle = 1 << (scheme.weight_bits - 1)
    for done, name in enumerate(names, start=1):
        codes = decode_linear(reader, name, scheme)
        num_inputs, num_outputs = codes.code_IO.shape
        linears.append(
            ConvertedLinear(name=name, num_outputs=num_outputs, num_inputs=num_inputs)
        )
        sym = sym and bool((codes.zero_GO == middle).all())
        lowest = min(lowest, int(codes.zero_GO.min()))
        act_order = act_order or codes.group_I is not None
        half_GO = codes.scale_GO.to(torch.float16).to(torch.float32)
        float16 = float16 and torch.equal(half_GO, codes.scale_GO)
        told(done, len(names))
    scales = "weight_scale" if scheme.packing in COMPRESSED_TENSORS else "scales"
    return Survey(
        linears=tuple(linears),
        sym=sym,
        lowest_zero=lowest,
        act_order=act_order,
        float16=float16,
        scale_dtypes=frozenset(reader.entry(f"{x}.{scales}").dtype for x in names),
    )


def target_scheme(scheme: QuantScheme, found: Survey, to: str) -> QuantScheme:
    """
    What another format says of the same numbers.

    Args:
        scheme: What was read.
        found: What its layers hold.
        to: One of `layout.FORMATS`.

    Raises:
        Unsupported: `convert.same` or `convert.lossy`.
    """
    family = "compressed-tensors" if scheme.packing in COMPRESSED_TENSORS else None
    if to in {scheme.packing, family}:
        raise Unsupported(
            f"the checkpoint is `{scheme.packing}` already",
            code="convert.same",
            hints=("nothing is to be done",),
        )
    _check_meaning(scheme, to)
    packing = "pack-quantized" if to == "compressed-tensors" else to
    if scheme.weight_bits not in BITS[packing]:
        raise lossy(f"`{to}` has no {scheme.weight_bits}-bit weights")
    if found.act_order and packing not in AUTOGPTQ:
        raise lossy(f"channels are in activation order, `{to}` has no group index")
    if packing == "gptq" and found.lowest_zero == 0:
        raise lossy(
            "some zero points are 0; `gptq` stores them minus one, and what that"
            " becomes differs between readers (`gptq_v2` stores them as they are)"
        )
    if scheme.packing == "gptq" and found.lowest_zero == 0:
        raise lossy(
            "some stored zero points are the largest number; `gptq` adds one, and"
            " whether that wraps to 0 differs between readers"
        )
    return replace(
        scheme,
        packing=packing,
        # AutoAWQ's form always has zero points, so the scheme says that it has.
        sym=found.sym and packing != "awq",
        scale_dtype=_scale_dtype(found, packing),
        act_order=found.act_order,
    )


def _check_meaning(scheme: QuantScheme, to: str) -> None:
    """What is more than codes and scales has no place outside compressed-tensors."""
    if scheme.weight_dtype == "float":
        raise lossy(f"`{to}` has no fp8 weights")
    if scheme.activation_scheme != "none":
        raise lossy(f"`{to}` has no place for 8-bit activations")
    if scheme.kv_cache_dtype != "auto":
        raise lossy(f"`{to}` has no place for scales of the key-value cache")
    if scheme.granularity == "tensor":
        raise lossy(f"`{to}` has no scale of a whole matrix")


def _scale_dtype(found: Survey, packing: str) -> str:
    if SCALE_DTYPES[packing] == ("float16",):
        if not found.float16:
            raise lossy(
                f"some scales are not float16 numbers, `{packing}` has no others"
            )
        return "float16"
    same = len(found.scale_dtypes) == 1
    return next(iter(found.scale_dtypes)) if same else "float32"


def lossy(message: str) -> Unsupported:
    """The refusal of what the other format cannot say."""
    return Unsupported(
        f"the conversion would not be exact: {message}",
        code="convert.lossy",
        hints=(
            "quantize the float model anew with `quantize.format`",
            "docs/concepts/formats.md says which conversions are exact",
        ),
    )


def _tensors_of(
    reader: CheckpointReader, name: str, scheme: QuantScheme
) -> dict[str, Tensor]:
    names = [f"{name}.{part}" for part in PARTS[scheme.packing]]
    return {full: reader.read(full) for full in names if full in reader}


def decode_linear(reader: CheckpointReader, name: str, scheme: QuantScheme) -> Codes:
    """One layer's codes, scales and zero points."""
    from lmi_build.checkpoint.formats.codec import decode

    return decode(_tensors_of(reader, name, scheme), name, scheme)
