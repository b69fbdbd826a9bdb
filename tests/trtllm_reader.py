"""
Reads a TensorRT-LLM checkpoint back into the Hugging Face model that it was made of.

Written from the format, and sharing no code with the package, so that both would have
to be wrong in the same way. What is known of the format: what the classes of
TensorRT-LLM declare and compute (quantization/layers.py, layers/attention.py), what
their loader changes on the way in (models/modeling_utils.py), what NVIDIA's own
converters write (models/*/convert.py, examples/*/convert_checkpoint.py), and
cutlass_preprocessors.cpp for the order of weight-only codes.

Shape suffixes: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LLAMA = {
    "attention.qkv": (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    ),
    "attention.dense": ("self_attn.o_proj",),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}
LLAMA_NORMS = {
    "input_layernorm": "input_layernorm",
    "post_layernorm": "post_attention_layernorm",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where a model of one kind keeps what TensorRT-LLM calls by the keys."""

    block: str
    linears: dict[str, tuple[str, ...]]
    norms: dict[str, str]
    embedding: str
    final_norm: str
    head: str = "lm_head"
    positions: str = ""
    # Rows before the first position; they are not in the checkpoint.
    skipped_positions: int = 0
    # Weights are stored inputs first.
    transposed: bool = False
    # q, k and v are one matrix: `concat`, or `heads` (a head's three, one by one).
    fused: str = ""
    # The checkpoint's norm is the model's plus one.
    plus_one: bool = False


_LLAMA = Family(
    block="model.layers.{}",
    linears=LLAMA,
    norms=LLAMA_NORMS,
    embedding="model.embed_tokens",
    final_norm="model.norm",
)
FAMILIES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "MixtralForCausalLM": _LLAMA,
    "QWenForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "GemmaForCausalLM": Family(
        block="model.layers.{}",
        linears=LLAMA,
        norms=LLAMA_NORMS,
        embedding="model.embed_tokens",
        final_norm="model.norm",
        plus_one=True,
    ),
    "GPTForCausalLM": Family(
        block="transformer.h.{}",
        linears={
            "attention.qkv": ("attn.c_attn",),
            "attention.dense": ("attn.c_proj",),
            "mlp.fc": ("mlp.c_fc",),
            "mlp.proj": ("mlp.c_proj",),
        },
        norms={"input_layernorm": "ln_1", "post_layernorm": "ln_2"},
        embedding="transformer.wte",
        positions="transformer.wpe",
        final_norm="transformer.ln_f",
        transposed=True,
        fused="concat",
    ),
    "OPTForCausalLM": Family(
        block="model.decoder.layers.{}",
        linears={
            "attention.qkv": LLAMA["attention.qkv"],
            "attention.dense": ("self_attn.out_proj",),
            "mlp.fc": ("fc1",),
            "mlp.proj": ("fc2",),
        },
        norms={
            "input_layernorm": "self_attn_layer_norm",
            "post_layernorm": "final_layer_norm",
        },
        embedding="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        skipped_positions=2,
        final_norm="model.decoder.final_layer_norm",
    ),
    "GPTNeoXForCausalLM": Family(
        block="gpt_neox.layers.{}",
        linears={
            "attention.qkv": ("attention.query_key_value",),
            "attention.dense": ("attention.dense",),
            "mlp.fc": ("mlp.dense_h_to_4h",),
            "mlp.proj": ("mlp.dense_4h_to_h",),
        },
        norms={
            "input_layernorm": "input_layernorm",
            "post_attention_layernorm": "post_attention_layernorm",
        },
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        fused="heads",
    ),
}
ROW = ("attention.dense", "mlp.proj")
# Input at each place of a group of them, from cutlass_preprocessors.cpp's comments.
INPUTS_8 = (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)
INPUTS_4 = (
    *(0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27),
    *(4, 5, 12, 13, 20, 21, 28, 29, 6, 7, 14, 15, 22, 23, 30, 31),
)


@dataclass(frozen=True, kw_only=True)
class Coded:
    """
    A quantized linear: a weight is (code - zero) * scale, all of them [O, ...].

    Args:
        code_OI: int16 signed codes.
        scale_OG: float32.
        zero_OG: int16, in steps of the signed codes; 0 on a symmetric grid.
        factor_I: float32, what inputs are multiplied by before.
    """

    code_OI: Tensor
    scale_OG: Tensor
    zero_OG: Tensor
    factor_I: Tensor

    def weight(self) -> Tensor:
        """What the linear multiplies the model's own inputs by: float32 [O, I]."""
        size = self.code_OI.shape[1] // self.scale_OG.shape[1]
        scale_OI = self.scale_OG.repeat_interleave(size, dim=1)
        zero_OI = self.zero_OG.repeat_interleave(size, dim=1)
        return (self.code_OI - zero_OI).float() * scale_OI * self.factor_I

    def rows(self, index: Tensor | slice) -> Coded:
        """Some of the outputs."""
        return Coded(
            code_OI=self.code_OI[index],
            scale_OG=self.scale_OG[index],
            zero_OG=self.zero_OG[index],
            factor_I=self.factor_I,
        )


@dataclass(frozen=True, kw_only=True)
class Model:
    """
    What was read, by the names of the Hugging Face model.

    Args:
        config: The checkpoint's config.json.
        tensors: Every float tensor, as the model stores it.
        coded: Every quantized linear, by its module.
        input_steps: float32, a step of int8 inputs where they are static, by module.
        cache_scales: float32 [1] by layer.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    coded: dict[str, Coded] = field(default_factory=dict)
    input_steps: dict[str, Tensor] = field(default_factory=dict)
    cache_scales: dict[int, Tensor] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Tensor]:
        """All weights as float32, for transformers."""
        family = FAMILIES[self.config["architecture"]]
        state = {name: tensor.float() for name, tensor in self.tensors.items()}
        for module, coded in self.coded.items():
            weight = coded.weight()
            state[f"{module}.weight"] = weight.T if family.transposed else weight
        return {name: tensor.contiguous() for name, tensor in state.items()}


def read_model(folder: Path) -> Model:
    """Read a folder with `config.json` and `rank*.safetensors`."""
    config = json.loads((folder / "config.json").read_text())
    mapping = config.get("mapping", {})
    tp, pp = mapping.get("tp_size", 1), mapping.get("pp_size", 1)
    assert mapping.get("world_size", 1) == tp * pp
    ranks = [load_file(folder / f"rank{rank}.safetensors") for rank in range(tp * pp)]
    files = sorted(path.name for path in folder.glob("rank*.safetensors"))
    assert len(files) == tp * pp, files
    model = Model(config=config)
    stages = [ranks[stage * tp : (stage + 1) * tp] for stage in range(pp)]
    _read_ends(model, stages[0], stages[-1])
    layer = 0
    shares = torch.tensor_split(torch.arange(config["num_hidden_layers"]), pp)
    for stage, share in zip(stages, shares, strict=True):
        numbers = {
            int(name.split(".")[2])
            for name in stage[0]
            if name.startswith("transformer.layers.")
        }
        assert numbers == set(range(len(share))), numbers
        for number in sorted(numbers):
            prefix = f"transformer.layers.{number}."
            blocks = [
                {
                    name.removeprefix(prefix): tensor
                    for name, tensor in rank.items()
                    if name.startswith(prefix)
                }
                for rank in stage
            ]
            _read_block(model, layer, blocks)
            layer += 1
    return model


def _family(model: Model) -> Family:
    return FAMILIES[model.config["architecture"]]


def _same(tensors: Sequence[Tensor]) -> Tensor:
    """What every rank must hold alike."""
    for tensor in tensors[1:]:
        assert torch.equal(tensor, tensors[0])
    return tensors[0]


def _read_ends(
    model: Model, first: list[dict[str, Tensor]], last: list[dict[str, Tensor]]
) -> None:
    """The embedding of the first stage, the norm and head of the last."""
    family, config = _family(model), model.config
    vocabulary = config["vocab_size"]
    for name, target, skipped in (
        ("vocab_embedding", family.embedding, 0),
        ("position_embedding", family.positions, family.skipped_positions),
    ):
        if not target:
            continue
        shares = [rank[f"transformer.{name}.weight"] for rank in first]
        if not config.get("use_parallel_embedding"):
            table = _same(shares)
        else:
            table = torch.cat(shares, dim=config.get("embedding_sharding_dim", 0))
        if name == "vocab_embedding":
            assert not table[vocabulary:].any()
            table = table[:vocabulary]
        blank = table.new_zeros(skipped, table.shape[1])
        model.tensors[f"{target}.weight"] = torch.cat((blank, table))
    for part in ("weight", "bias"):
        if f"transformer.ln_f.{part}" in last[0]:
            norm = _same([rank[f"transformer.ln_f.{part}"] for rank in last])
            model.tensors[f"{family.final_norm}.{part}"] = _norm(family, norm)
    if "lm_head.weight" in last[0]:
        head = torch.cat([rank["lm_head.weight"] for rank in last])
        assert not head[vocabulary:].any()
        model.tensors[f"{family.head}.weight"] = head[:vocabulary]


def _norm(family: Family, norm: Tensor) -> Tensor:
    return norm.float() - 1 if family.plus_one else norm


def _read_block(model: Model, layer: int, blocks: list[dict[str, Tensor]]) -> None:
    family = _family(model)
    prefix = family.block.format(layer)
    for name, target in family.norms.items():
        for part in ("weight", "bias"):
            if f"{name}.{part}" in blocks[0]:
                norm = _same([block[f"{name}.{part}"] for block in blocks])
                model.tensors[f"{prefix}.{target}.{part}"] = _norm(family, norm)
    if "mlp.router.weight" in blocks[0]:
        _read_experts(model, f"{prefix}.block_sparse_moe", blocks)
    for name, targets in family.linears.items():
        if f"{name}.weight" in blocks[0]:
            modules = [f"{prefix}.{target}" for target in targets]
            _read_linear(model, name, modules, blocks)
    if "attention.kv_cache_scaling_factor" in blocks[0]:
        scales = [block["attention.kv_cache_scaling_factor"] for block in blocks]
        assert scales[0].dtype == torch.float32
        assert scales[0].shape == (1,)
        model.cache_scales[layer] = _same(scales)


def _read_experts(model: Model, prefix: str, blocks: list[dict[str, Tensor]]) -> None:
    """Experts lie one behind the other, up before gate."""
    router = _same([block["mlp.router.weight"] for block in blocks])
    model.tensors[f"{prefix}.gate.weight"] = router
    pairs = [block["mlp.fc.weight"].chunk(2, dim=1) for block in blocks]
    down_EOI = torch.cat([block["mlp.proj.weight"] for block in blocks], dim=2)
    up_EOI = torch.cat([up for up, _ in pairs], dim=1)
    gate_EOI = torch.cat([gate for _, gate in pairs], dim=1)
    for part, weights in (("w1", gate_EOI), ("w2", down_EOI), ("w3", up_EOI)):
        for expert, weight in enumerate(weights):
            model.tensors[f"{prefix}.experts.{expert}.{part}.weight"] = weight


def _read_linear(
    model: Model, name: str, modules: list[str], blocks: list[dict[str, Tensor]]
) -> None:
    if "mlp.router.weight" in blocks[0] and name.startswith("mlp."):
        return
    algorithm = model.config.get("quantization", {}).get("quant_algo") or ""
    pieces = [_piece(name, block, algorithm, model.config) for block in blocks]
    biases = [block.get(f"{name}.bias") for block in blocks]
    if name in ROW:
        whole = _beside(pieces, grouped=algorithm == "W4A16_AWQ")
        parts, bias_parts = [whole], [_same_or_none(biases)]
    elif name == "attention.qkv":
        parts = [_stack(group) for group in _heads(model.config, pieces)]
        bias_parts = (
            [torch.cat(group) for group in _heads(model.config, _biases(biases))]
            if biases[0] is not None
            else [None] * 3
        )
        if len(modules) == 1:
            order = _fused_order(model.config, _family(model).fused)
            parts = [_take(_stack(parts), order)]
            joined = [part for part in bias_parts if part is not None]
            bias_parts = [torch.cat(joined)[order] if joined else None]
    else:
        parts = [_stack(pieces)]
        bias_parts = [torch.cat(_biases(biases)) if biases[0] is not None else None]
    steps = _input_step(name, blocks)
    for module, part, bias in zip(modules, parts, bias_parts, strict=True):
        if isinstance(part, Coded):
            model.coded[module] = part
        else:
            weight = part.T if _family(model).transposed else part
            model.tensors[f"{module}.weight"] = weight
        if bias is not None:
            model.tensors[f"{module}.bias"] = bias
        if steps is not None:
            model.input_steps[module] = steps


def _biases(biases: list[Tensor | None]) -> list[Tensor]:
    present = [bias for bias in biases if bias is not None]
    assert len(present) == len(biases)
    return present


def _same_or_none(biases: list[Tensor | None]) -> Tensor | None:
    return None if biases[0] is None else _same(_biases(biases))


def _stack(pieces: Sequence[Any]) -> Any:
    """Outputs of several pieces, one below the other."""
    if isinstance(pieces[0], Tensor):
        return torch.cat(list(pieces))
    return Coded(
        code_OI=torch.cat([piece.code_OI for piece in pieces]),
        scale_OG=torch.cat([piece.scale_OG for piece in pieces]),
        zero_OG=torch.cat([piece.zero_OG for piece in pieces]),
        factor_I=_same([piece.factor_I for piece in pieces]),
    )


def _beside(pieces: Sequence[Any], *, grouped: bool) -> Any:
    """Inputs of several pieces, side by side."""
    if isinstance(pieces[0], Tensor):
        return torch.cat(list(pieces), dim=1)
    join: Callable[[list[Tensor]], Tensor] = _same
    if grouped:
        join = functools.partial(torch.cat, dim=1)
    return Coded(
        code_OI=torch.cat([piece.code_OI for piece in pieces], dim=1),
        scale_OG=join([piece.scale_OG for piece in pieces]),
        zero_OG=join([piece.zero_OG for piece in pieces]),
        factor_I=torch.cat([piece.factor_I for piece in pieces]),
    )


def _take(piece: Any, index: Tensor | slice) -> Any:
    return piece[index] if isinstance(piece, Tensor) else piece.rows(index)


def _heads(config: dict[str, Any], pieces: Sequence[Any]) -> list[list[Any]]:
    """Queries, keys and values of all ranks, each key and value head once."""
    heads = config["num_attention_heads"]
    keys = config.get("num_key_value_heads") or heads
    width = config.get("head_size") or config["hidden_size"] // heads
    tp = len(pieces)
    queries, shared = heads // tp * width, max(keys // tp, 1) * width
    # Where ranks outnumber heads, neighbours hold the same one.
    repeats = max(tp // keys, 1)
    found: list[list[Any]] = [[], [], []]
    for rank, piece in enumerate(pieces):
        rows = len(piece) if isinstance(piece, Tensor) else len(piece.code_OI)
        assert rows == queries + 2 * shared
        found[0].append(_take(piece, slice(0, queries)))
        for part in (0, 1):
            start = queries + part * shared
            mine = _take(piece, slice(start, start + shared))
            if rank % repeats == 0:
                found[part + 1].append(mine)
            else:
                _assert_equal(found[part + 1][-1], mine)
    return found


def _assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
        return
    for name in ("code_OI", "scale_OG", "zero_OG"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def _fused_order(config: dict[str, Any], fused: str) -> Tensor:
    """Rows of q, k, v stacked in the order of the model's one matrix."""
    rows = torch.arange(3 * config["hidden_size"])
    if fused == "concat":
        return rows
    heads = config["num_attention_heads"]
    return rows.reshape(3, heads, -1).transpose(0, 1).reshape(-1)


def _input_step(name: str, blocks: list[dict[str, Tensor]]) -> Tensor | None:
    for part in ("act_scale", "activation_scaling_factor"):
        if f"{name}.{part}" in blocks[0]:
            steps = [block[f"{name}.{part}"] for block in blocks]
            assert steps[0].dtype == torch.float32
            return _same(steps).reshape(1)
    return None


def _piece(
    name: str, block: dict[str, Tensor], algorithm: str, config: dict[str, Any]
) -> Any:
    """One rank's share of a linear: float [O, I], or codes."""
    own = {
        key.removeprefix(f"{name}."): tensor
        for key, tensor in block.items()
        if key.startswith(f"{name}.")
    }
    if own["weight"].is_floating_point():
        return own["weight"]
    assert own["weight"].dtype == torch.int8
    if algorithm == "W4A16_AWQ":
        return _awq(own, config)
    if algorithm in {"W8A16", "W4A16"}:
        return _weight_only(own, algorithm, config)
    return _smoothquant(name, block, own, algorithm, config)


def _coded(
    code_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor | None, factor_I: Tensor | None
) -> Coded:
    num_inputs = code_OI.shape[1]
    return Coded(
        code_OI=code_OI.to(torch.int16),
        scale_OG=scale_OG.float(),
        zero_OG=(
            torch.zeros(scale_OG.shape, dtype=torch.int16)
            if zero_OG is None
            else zero_OG.to(torch.int16)
        ),
        factor_I=torch.ones(num_inputs) if factor_I is None else factor_I.float(),
    )


def _dtype(config: dict[str, Any]) -> torch.dtype:
    dtype = getattr(torch, config["dtype"])
    assert isinstance(dtype, torch.dtype)
    return dtype


def _awq(own: dict[str, Tensor], config: dict[str, Any]) -> Coded:
    quantization = config["quantization"]
    packed = own["weight"].to(torch.int16)
    num_inputs = packed.shape[1]
    code_OI = torch.empty(2 * packed.shape[0], num_inputs, dtype=torch.int16)
    code_OI[0::2] = ((packed & 0xF) ^ 8) - 8
    code_OI[1::2] = packed >> 4
    scale_OG = own["weights_scaling_factor"]
    assert scale_OG.dtype == _dtype(config)
    groups = num_inputs // quantization["group_size"]
    assert scale_OG.shape == (code_OI.shape[0], groups)
    # The loaders of 0.15 and 0.16 turn scales around only if they are this way.
    assert scale_OG.shape[0] > scale_OG.shape[1]
    zero_OG = None
    assert ("zero" in own) == bool(quantization.get("has_zero_point"))
    if "zero" in own:
        assert own["zero"].shape == (groups, code_OI.shape[0])
        steps = -own["zero"].T.double() / scale_OG.double()
        zero_OG = steps.round()
        assert (steps - zero_OG).abs().max() < 0.05
    factor_I = own.get("prequant_scaling_factor")
    assert (factor_I is not None) == bool(quantization.get("pre_quant_scale"))
    return _coded(code_OI, scale_OG, zero_OG, factor_I)


def _weight_only(
    own: dict[str, Tensor], algorithm: str, config: dict[str, Any]
) -> Coded:
    bits = 8 if algorithm == "W8A16" else 4
    scale = own["per_channel_scale"]
    assert scale.dtype == _dtype(config)
    num_outputs = scale.shape[0]
    held = own["weight"].reshape(-1).view(torch.uint8).to(torch.int16)
    if bits == 4:
        held = torch.stack((held & 0xF, held >> 4), dim=1).reshape(-1)
    num_inputs = held.numel() // num_outputs
    assert own["weight"].shape == (num_inputs, num_outputs * bits // 8)
    pack, word = (2, (0, 2, 1, 3)) if bits == 8 else (4, (0, 2, 4, 6, 1, 3, 5, 7))
    inputs = torch.tensor(INPUTS_8 if bits == 8 else INPUTS_4)
    place = torch.arange(held.numel())
    # Where in the order of step 3 the code at each place in memory belongs.
    place = place // len(word) * len(word) + torch.tensor(word)[place % len(word)]
    band, rest = place // (num_inputs * pack), place % (num_inputs * pack)
    run, within = rest // (64 * pack), rest % (64 * pack)
    output = band * pack + within // 64
    row = run * 64 + within % 64
    row = row // len(inputs) * len(inputs) + inputs[row % len(inputs)]
    code_OI = torch.empty(num_outputs, num_inputs, dtype=torch.int16)
    code_OI[output, row] = held - (1 << (bits - 1))
    return _coded(code_OI, scale.reshape(-1, 1), None, None)


def _smoothquant(
    name: str,
    block: dict[str, Tensor],
    own: dict[str, Tensor],
    algorithm: str,
    config: dict[str, Any],
) -> Coded:
    code_OI = own["weight"]
    num_outputs, num_inputs = code_OI.shape
    if algorithm == "W8A8_SQ_PER_CHANNEL":
        assert own["weights_scaling_factor"].shape == (num_outputs,)
        assert own["activation_scaling_factor"].shape == (1,)
        factor_I = own["prequant_scaling_factor"]
        assert factor_I.shape == (num_inputs,)
        assert factor_I.dtype == _dtype(config)
        scale_O1 = own["weights_scaling_factor"].reshape(-1, 1)
        return _coded(code_OI, scale_O1, None, factor_I)
    assert algorithm.endswith("_PLUGIN")
    shared = "_SQ_PER_TENSOR_" in algorithm and name != "attention.qkv"
    scale = own["per_channel_scale"]
    assert scale.dtype == torch.float32
    assert scale.shape == (1, 1 if shared else num_outputs)
    smoother = own.get("smoother")
    assert (smoother is not None) == (name in ROW)
    if smoother is not None:
        assert smoother.shape == (1, num_inputs)
    dynamic = "PER_TOKEN" in algorithm
    assert ("act_scale" in own) == (not dynamic)
    inverse = _inverse_step(name, block)
    if dynamic:
        assert inverse is None or float(inverse) == 1.0
    else:
        assert inverse is not None
        # Only their product counts; taken apart with what the inputs were divided by.
        ratio = float(own["act_scale"].double() * inverse.double())
        if abs(ratio - 1) > 2**-7:
            scale = scale * ratio
    return _coded(
        code_OI,
        scale.reshape(-1, 1).expand(num_outputs, 1),
        None,
        None if smoother is None else 1 / smoother.reshape(-1),
    )


def _inverse_step(name: str, block: dict[str, Tensor]) -> Tensor | None:
    """What the inputs are multiplied by before they become int8."""
    if name in ROW:
        owner = name.partition(".")[0]
        return block.get(f"{owner}.quantization_scaling_factor")
    if name == "attention.qkv":
        return block["input_layernorm.scale_to_int"]
    for norm in ("post_layernorm", "post_attention_layernorm"):
        if f"{norm}.scale_to_int" in block:
            return block[f"{norm}.scale_to_int"]
    raise AssertionError(f"no norm before {name} turns its outputs into int8")
