"""
Quantized checkpoints as float weights, read by code that shares none with the writers.

Formats: AutoGPTQ (`qweight` packed along inputs; zero points one too low in its first
version), AutoAWQ GEMM (packed along outputs, interleaved), compressed-tensors
(`weight_packed` along inputs, or whole int8 and float8 numbers), Olive (bytes along
inputs). All mean (code - zero) * scale of the input channel's group.

Legend: O output rows, I input columns, G groups of I.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    Tensors = Mapping[str, torch.Tensor]

# AutoAWQ keeps output j of eight in the nibble of this number, lowest first.
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
FLOAT8_MAX = 448.0
WORD_BITS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """
    How the inputs of quantized linears are rounded at run time.

    Args:
        bits: Bits of one number.
        is_float: Whether it is float8 (e4m3) instead of an integer.
        dynamic: Whether scales come from the activations themselves.
        per_token: Whether each token has its own scale.
    """

    bits: int
    is_float: bool
    dynamic: bool
    per_token: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """
    A checkpoint with its weights unpacked.

    Args:
        tensors: Float weights by their names in the float model.
        layers: Names of the linears that were quantized.
        activations: None where activations stay in float.
        input_scales: Scale of each layer's input where it is static.
    """

    tensors: dict[str, torch.Tensor]
    layers: tuple[str, ...]
    activations: Activations | None
    input_scales: dict[str, torch.Tensor]


def unpack_columns(packed: torch.Tensor, *, bits: int) -> torch.Tensor:
    """Split the last axis into parts of `bits` bits, low bits first, without gaps."""
    import torch

    width = packed.element_size() * 8
    wide = packed.to(torch.int64) & ((1 << width) - 1)
    # Parts of three bits go on in the next word; single bits know no words.
    step = bits if width % bits == 0 else 1
    shifts = torch.arange(0, width, step, dtype=torch.int64)
    parts = ((wide.unsqueeze(-1) >> shifts) & ((1 << step) - 1)).flatten(-2)
    if step == bits:
        return parts
    whole = parts.shape[-1] // bits * bits
    places = 1 << torch.arange(bits)
    return (parts[..., :whole].reshape(*parts.shape[:-1], -1, bits) * places).sum(-1)


def unpack_gptq(tensors: Tensors, *, bits: int, v1: bool) -> torch.Tensor:
    """
    Float weight (O, I) of one AutoGPTQ layer.

    Args:
        tensors: `qweight` (I/8, O), `qzeros` (G, O/8), `scales` (G, O), `g_idx` (I).
        bits: Bits of one weight.
        v1: Whether stored zero points are one too low, as the first format has them.
    """
    import torch

    q_oi = unpack_columns(tensors["qweight"].T.contiguous(), bits=bits)
    zeros_go = unpack_columns(tensors["qzeros"], bits=bits)
    zeros_go = (zeros_go + int(v1)) & ((1 << bits) - 1)
    group_i = tensors["g_idx"].to(torch.int64)
    scales_go = tensors["scales"].float()
    return (q_oi - zeros_go[group_i].T).float() * scales_go[group_i].T


def unpack_olive(tensors: Tensors, *, bits: int, group_size: int) -> torch.Tensor:
    """
    Float weight (O, I) of one Olive layer.

    Args:
        tensors: `qweight` (O, I/2) bytes, `scales` (O, G), `qzeros` when asymmetric.
        bits: Bits of one weight.
        group_size: Input columns of one scale.
    """
    import torch

    q_oi = unpack_columns(tensors["qweight"], bits=bits)
    scales_og = tensors["scales"].float()
    zeros_og = torch.full(scales_og.shape, 1 << (bits - 1))
    if "qzeros" in tensors:
        zeros_og = unpack_columns(tensors["qzeros"], bits=bits)
        zeros_og = zeros_og[:, : scales_og.shape[1]]
    group_i = torch.arange(q_oi.shape[1]) // group_size
    return (q_oi - zeros_og[:, group_i]).float() * scales_og[:, group_i]


def unpack_awq(tensors: Tensors) -> torch.Tensor:
    """
    Float weight (O, I) of one AutoAWQ GEMM layer, 4 bits.

    Args:
        tensors: `qweight` (I, O/8), `qzeros` (G, O/8), `scales` (G, O).
    """
    import torch

    def columns(packed: torch.Tensor) -> torch.Tensor:
        nibbles = unpack_columns(packed, bits=4).reshape(packed.shape[0], -1, 8)
        return nibbles[..., list(AWQ_NIBBLES)].flatten(-2)

    q_io = columns(tensors["qweight"])
    scales_go = tensors["scales"].float()
    group_i = torch.arange(q_io.shape[0]) // (q_io.shape[0] // scales_go.shape[0])
    centred_io = (q_io - columns(tensors["qzeros"])[group_i]).float()
    return (centred_io * scales_go[group_i]).T.contiguous()


def unpack_compressed(tensors: Tensors, *, bits: int) -> torch.Tensor:
    """
    Float weight (O, I) of one compressed-tensors layer.

    Args:
        tensors: `weight_packed` (O, I/8) with `weight_shape`, or `weight` (O, I) of
            int8 or float8; `weight_scale` (O, G), (O, 1) or (1); where asymmetric
            `weight_zero_point`, packed along outputs (O/8, G) or int8. `weight_g_idx`
            (I) where groups are not in order.
        bits: Bits of one weight.
    """
    import torch

    scale_og = tensors["weight_scale"].float().reshape(-1, 1).expand(-1, 1)
    if tensors["weight_scale"].dim() > 1:
        scale_og = tensors["weight_scale"].float()
    offset = 1 << (bits - 1)
    if "weight_packed" in tensors:
        num_outputs, num_inputs = tensors["weight_shape"].tolist()
        q_oi = unpack_columns(tensors["weight_packed"], bits=bits)[:, :num_inputs]
        q_oi = q_oi - offset
    else:
        num_outputs, num_inputs = tensors["weight"].shape
        q_oi = tensors["weight"].float()
    zero_og = torch.zeros(1, 1)
    if "weight_zero_point" in tensors:
        zero_og = tensors["weight_zero_point"]
        if zero_og.dtype == torch.int32:
            zero_go = unpack_columns(zero_og.T.contiguous(), bits=bits)
            zero_og = zero_go[:, :num_outputs].T - offset
        zero_og = zero_og.reshape(-1, scale_og.shape[1])
    num_groups = scale_og.shape[1]
    group_i = torch.arange(num_inputs) // -(-num_inputs // num_groups)
    if "weight_g_idx" in tensors:
        group_i = tensors["weight_g_idx"].to(torch.int64)
    zero_og = zero_og.expand(zero_og.shape[0], num_groups).float()
    return (q_oi.float() - zero_og[:, group_i]) * scale_og[:, group_i]


def _activations(quantization: Mapping[str, Any]) -> Activations | None:
    groups = list(quantization.get("config_groups", {}).values())
    found = groups[0].get("input_activations") if groups else None
    if found is None:
        return None
    return Activations(
        bits=int(found["num_bits"]),
        is_float=found["type"] == "float",
        dynamic=bool(found["dynamic"]),
        per_token=found["strategy"] == "token",
    )


def _layer(parts: Tensors, quantization: Mapping[str, Any]) -> torch.Tensor:
    method = quantization["quant_method"]
    if method == "gptq":
        v1 = quantization.get("checkpoint_format", "gptq") == "gptq"
        return unpack_gptq(parts, bits=int(quantization["bits"]), v1=v1)
    if method == "awq" and quantization.get("version", "gemm").lower() == "gemm":
        return unpack_awq(parts)
    if method == "olive":
        size = int(quantization["group_size"])
        return unpack_olive(parts, bits=int(quantization["bits"]), group_size=size)
    groups = list(quantization.get("config_groups", {}).values())
    if method == "compressed-tensors" and len(groups) == 1:
        return unpack_compressed(parts, bits=int(groups[0]["weights"]["num_bits"]))
    return sys.exit(f"cannot unpack {json.dumps(dict(quantization))}")


def read_checkpoint(folder: Path, quantization: Mapping[str, Any]) -> Checkpoint:
    """Every tensor of a quantized checkpoint, its layers unpacked to float32."""
    from safetensors.torch import load_file

    flat: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        flat.update(load_file(shard))
    tensors: dict[str, torch.Tensor] = {}
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in flat.items():
        layer, _, part = name.rpartition(".")
        marks = (f"{layer}.qweight", f"{layer}.weight_scale")
        if part != "bias" and any(mark in flat for mark in marks):
            layers.setdefault(layer, {})[part] = tensor
        # Scales of the cache of keys and values: the float model has no place for them.
        elif part not in {"k_scale", "v_scale"}:
            tensors[name] = tensor
    for layer, parts in layers.items():
        tensors[f"{layer}.weight"] = _layer(parts, quantization)
    return Checkpoint(
        tensors=tensors,
        layers=tuple(layers),
        activations=_activations(quantization),
        input_scales={
            layer: parts["input_scale"].float()
            for layer, parts in layers.items()
            if "input_scale" in parts
        },
    )


def round_activations(
    x: torch.Tensor, how: Activations, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Activations as the run time would round them, in the type they came in.

    Args:
        x: Inputs of a linear, channels last.
        how: Which grid.
        scale: The static scale; needed unless `how.dynamic`.
    """
    import torch

    top = FLOAT8_MAX if how.is_float else float((1 << (how.bits - 1)) - 1)
    if how.dynamic:
        largest = x.abs().amax(-1, keepdim=True) if how.per_token else x.abs().amax()
        scale = (largest / top).clamp_min(torch.finfo(x.dtype).tiny)
    if scale is None:
        sys.exit("activations are static, but the checkpoint has no `input_scale`")
    if how.is_float:
        steps = (x / scale).clamp(-top, top)
        return (steps.to(torch.float8_e4m3fn).to(scale.dtype) * scale).to(x.dtype)
    return ((x / scale).round_().clamp_(-top - 1, top) * scale).to(x.dtype)
