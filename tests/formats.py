"""
Quantized linears for tests, and each format packed value by value.

The packers here are slow, plain and independent of the library's own on purpose: they
say where code (i, o) lies in words and bits, one code at a time.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lmi_build.checkpoint.formats.codec import Codes, encode
from lmi_build.checkpoint.formats.config import quantization_config
from lmi_build.values.quant import QuantScheme

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Words = NDArray[np.uint32]

# From the lowest bits of a word up, the output that AutoAWQ's kernels expect.
AWQ_PLACES = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A linear's name and widths."""

    name: str = "m"
    num_outputs: int = 32
    num_inputs: int = 64


def scheme(packing: str, **changes: Any) -> QuantScheme:
    """The packing's most usual scheme."""
    plain = QuantScheme(
        weight_bits=8 if packing in {"int-quantized", "float-quantized"} else 4,
        weight_dtype="float" if packing == "float-quantized" else "int",
        group_size=-1 if packing in {"int-quantized", "float-quantized"} else 32,
        sym=packing != "awq",
        activation_bits=16,
        packing=packing,
    )
    return replace(plain, **changes)


def random_codes(
    shape: Shape, form: QuantScheme, *, seed: int = 0, zeros_from: int = 1
) -> Codes:
    """Codes, scales that the format's dtype holds, and zero points."""
    generator = torch.Generator().manual_seed(seed)
    size = shape.num_inputs if form.group_size == -1 else form.group_size
    num_groups = shape.num_inputs // size
    scale_GO = torch.rand(num_groups, shape.num_outputs, generator=generator) / 64
    scale_GO = scale_GO.add_(2**-12).to(getattr(torch, form.scale_dtype)).float()
    if form.granularity == "tensor" and form.group_size == -1:
        scale_GO = scale_GO[:, :1].expand(-1, shape.num_outputs).contiguous()
    top = 1 << form.weight_bits
    wide = (shape.num_inputs, shape.num_outputs)
    if form.weight_dtype == "float":
        code_IO = torch.randn(wide, generator=generator).mul_(60)
        return Codes(
            code_IO=code_IO.to(torch.float8_e4m3fn),
            scale_GO=scale_GO,
            zero_GO=torch.zeros(scale_GO.shape, dtype=torch.uint8),
        )
    zero_GO = torch.full(scale_GO.shape, top // 2, dtype=torch.uint8)
    if not form.sym:
        zero_GO = torch.randint(
            zeros_from, top, scale_GO.shape, generator=generator, dtype=torch.uint8
        )
    group_I = None
    if form.act_order and num_groups > 1:
        order = torch.randperm(shape.num_inputs, generator=generator)
        group_I = torch.empty(shape.num_inputs, dtype=torch.int32)
        group_I[order] = (torch.arange(shape.num_inputs) // size).to(torch.int32)
    return Codes(
        code_IO=torch.randint(0, top, wide, generator=generator, dtype=torch.uint8),
        scale_GO=scale_GO,
        zero_GO=zero_GO,
        group_I=group_I,
    )


def same_codes(one: Codes, other: Codes) -> bool:
    """Whether every number of two linears is the same."""
    pairs = [
        (one.code_IO.view(torch.uint8), other.code_IO.view(torch.uint8)),
        (one.scale_GO, other.scale_GO),
        (one.zero_GO, other.zero_GO),
    ]
    if one.group_I is None or other.group_I is None:
        return one.group_I is other.group_I and all(torch.equal(*p) for p in pairs)
    return all(torch.equal(*p) for p in [*pairs, (one.group_I, other.group_I)])


def stream_words(codes: NDArray[Any], bits: int) -> Words:
    """Codes along the first axis as one stream of bits, low bits first."""
    count, width = codes.shape
    words = np.zeros((-(-count * bits // 32), width), dtype=np.uint64)
    for row in range(count):
        for bit in range(bits):
            at = row * bits + bit
            for column in range(width):
                value = (int(codes[row, column]) >> bit) & 1
                words[at // 32, column] |= np.uint64(value << (at % 32))
    return words.astype(np.uint32)


def awq_words(codes: NDArray[Any]) -> Words:
    """Eight consecutive outputs in a word, in AutoAWQ's order."""
    height, width = codes.shape
    words = np.zeros((height, width // 8), dtype=np.uint64)
    for row in range(height):
        for column in range(width):
            shift = 4 * AWQ_PLACES[column % 8]
            words[row, column // 8] |= np.uint64(int(codes[row, column]) << shift)
    return words.astype(np.uint32)


def slow_parts(codes: Codes, form: QuantScheme) -> dict[str, NDArray[Any]]:
    """What a format stores of a linear, except for its scales."""
    code, zero = codes.code_IO.view(torch.uint8).numpy(), codes.zero_GO.numpy()
    bits = form.weight_bits
    if form.packing == "awq":
        return {"qweight": awq_words(code), "qzeros": awq_words(zero)}
    if form.packing in {"gptq", "gptq_v2"}:
        stored = zero - 1 if form.packing == "gptq" else zero
        return {
            "qweight": stream_words(code, bits),
            "qzeros": stream_words(stored.T, bits).T,
        }
    if form.packing == "pack-quantized":
        parts = {"weight_packed": stream_words(code, bits).T}
        if not form.sym:
            parts["weight_zero_point"] = stream_words(zero.T, bits)
        return parts
    if form.packing == "float-quantized":
        return {"weight": code.T}
    parts = {"weight": (code.T.astype(np.int16) - 128).astype(np.int8)}
    if not form.sym:
        parts["weight_zero_point"] = (zero.T.astype(np.int16) - 128).astype(np.int8)
    return parts


def write_folder(
    folder: Path, linears: dict[str, Codes], form: QuantScheme, **config: Any
) -> Path:
    """
    A checkpoint of some linears, a norm and an embedding in bfloat16.

    Args:
        folder: Folder to make.
        linears: Codes by module name.
        form: Their format.
        config: Entries that replace those of `quantization_config`.
    """
    folder.mkdir(parents=True)
    tensors = {
        "model.embed_tokens.weight": torch.arange(64.0).view(8, 8).bfloat16(),
        "model.norm.weight": torch.ones(8).bfloat16(),
        "model.layers.0.kept.weight": torch.ones(8, 4).bfloat16(),
    }
    for name, codes in linears.items():
        tensors |= encode(name, codes, slice(None), form, group_I=codes.group_I)
        tensors[f"{name}.bias"] = torch.ones(codes.code_IO.shape[1]).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = quantization_config(
        form, left=("lm_head", "model.layers.0.kept"), method="test"
    )
    document = {
        "model_type": "llama",
        "quantization_config": {**quantization, **config},
    }
    (folder / "config.json").write_text(json.dumps(document), "utf-8")
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    (folder / "quantize_config.json").write_text('{"bits": 4}', "utf-8")
    return folder


def quantize_folder_as(
    source: Path, out: Path, form: QuantScheme, *, ignore: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """
    Round a model's projections to nearest and write them in a format.

    Args:
        source: A folder with one `model.safetensors`.
        out: Folder to make.
        form: The format.
        ignore: Endings of layer names that stay float.

    Returns:
        Every quantized layer in float32, from the numbers that were rounded to.
    """
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors: dict[str, torch.Tensor] = {}
    dense: dict[str, torch.Tensor] = {}
    left = ["lm_head"]
    for name, tensor in load_file(source / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if not layer.endswith("_proj") or layer.endswith(ignore or ("\0",)):
            tensors[name] = tensor
            left += [layer] if layer.endswith("_proj") else []
            continue
        codes, dense[layer] = round_weight(tensor.float(), form)
        scale = torch.tensor(0.01)
        tensors |= encode(layer, codes, slice(None), form, input_scale=scale)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_bytes())
    config["quantization_config"] = quantization_config(
        form, left=left, linears=list(dense), method="test"
    )
    (out / "config.json").write_text(json.dumps(config), "utf-8")
    return dense


def round_weight(
    weight_OI: torch.Tensor, form: QuantScheme
) -> tuple[Codes, torch.Tensor]:
    """Codes nearest to a matrix, and the float32 numbers that they stand for."""
    num_outputs, num_inputs = weight_OI.shape
    size = num_inputs if form.group_size == -1 else form.group_size
    rows = weight_OI.reshape(num_outputs, -1, size)
    top = (1 << form.weight_bits) - 1
    low, high = rows.amin(-1).clamp(max=0), rows.amax(-1).clamp(min=0)
    reach = 2 * torch.maximum(-low, high)
    if form.granularity == "tensor":
        reach = reach.amax().expand_as(reach)
    span = reach if form.sym else high - low
    float8 = form.weight_dtype == "float"
    scale = span / (2 * 448 if float8 else top)
    scale = scale.to(getattr(torch, form.scale_dtype)).float()
    if float8:
        code = (rows / scale[..., None]).to(torch.float8_e4m3fn)
        zero = torch.zeros_like(scale)
    else:
        zero = torch.full_like(scale, (top + 1) // 2)
        if not form.sym:
            zero = (-low / scale).round().clamp(1, top)
        code = ((rows / scale[..., None]).round() + zero[..., None]).clamp(0, top)
    dense = (code.float() - zero[..., None]) * scale[..., None]
    whole = code.reshape(num_outputs, num_inputs).T.contiguous()
    codes = Codes(
        code_IO=whole if float8 else whole.to(torch.uint8),
        scale_GO=scale.T.contiguous(),
        zero_GO=zero.T.contiguous().to(torch.uint8),
    )
    return codes, dense.reshape(num_outputs, num_inputs)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every tensor of a folder as bytes, with its dtype and shape in the name."""
    return {
        f"{name} {tensor.dtype} {list(tensor.shape)}": tensor.flatten()
        .view(torch.uint8)
        .numpy()
        .tobytes()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
