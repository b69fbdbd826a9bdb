"""
A tiny random model of every architecture that the built-in quantizer knows.

Sizes are odd where the architecture allows: grouped queries, heads wider than their
share of the residual stream, windows shorter than the samples, soft caps that bite,
norms and biases that matter. Widths are multiples of 32, so that groups of 32 fit.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from make_tiny_model import _write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

VOCAB_SIZE = 320
NUM_LAYERS = 3
WINDOW = 21
POSITIONS = 256
_LLAMA: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": POSITIONS,
}
_PLAIN: dict[str, Any] = {
    **{k: v for k, v in _LLAMA.items() if k not in {"head_dim", "num_key_value_heads"}},
}
_GPT2: dict[str, Any] = {"n_embd": 96, "n_head": 6, "n_positions": POSITIONS}
_EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "num_experts": 5,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
}
# Name: transformers' class, and what its config is made of.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-yarn": ("Llama", {**_LLAMA, "rope_parameters": _YARN}),
    "mistral": ("Mistral", {**_LLAMA, "sliding_window": WINDOW}),
    "mixtral": (
        "Mixtral",
        {**_LLAMA, "num_local_experts": 5, "num_experts_per_tok": 2},
    ),
    "qwen2": ("Qwen2", {**_PLAIN, "num_key_value_heads": 6}),
    "qwen2-window": (
        "Qwen2",
        {
            **_PLAIN,
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **_PLAIN,
            **_EXPERTS,
            "num_key_value_heads": 2,
            "shared_expert_intermediate_size": 128,
            "decoder_sparse_step": 2,
            "norm_topk_prob": False,
        },
    ),
    "qwen3": ("Qwen3", _LLAMA),
    "qwen3_moe": (
        "Qwen3Moe",
        {**_LLAMA, **_EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [1]},
    ),
    "gemma": ("Gemma", _LLAMA),
    "gemma2": (
        "Gemma2",
        {
            **_LLAMA,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "sliding_window": WINDOW,
        },
    ),
    "gemma3_text": (
        "Gemma3",
        {**_LLAMA, "sliding_window": WINDOW, "query_pre_attn_scalar": 20},
    ),
    "phi": ("Phi", {**_PLAIN, "num_key_value_heads": 2, "partial_rotary_factor": 0.5}),
    "phi-qk": ("Phi", {**_PLAIN, "qk_layernorm": True}),
    "phi3": (
        "Phi3",
        {**_PLAIN, "num_key_value_heads": 2, "sliding_window": WINDOW},
    ),
    "phi3-longrope": (
        "Phi3",
        {
            **_PLAIN,
            "original_max_position_embeddings": 64,
            "rope_parameters": _LONGROPE,
        },
    ),
    "gpt2": ("GPT2", {**_GPT2, "n_layer": NUM_LAYERS}),
    "gpt2-by-layer": (
        "GPT2",
        {**_GPT2, "n_inner": 160, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gptj": ("GPTJ", {**_GPT2, "rotary_dim": 8}),
    "gpt_neox": ("GPTNeoX", {**_PLAIN, "rotary_pct": 0.5}),
    "gpt_neox-sequential": ("GPTNeoX", {**_PLAIN, "use_parallel_residual": False}),
    "opt": (
        "OPT",
        {
            "hidden_size": 96,
            "ffn_dim": 160,
            "num_attention_heads": 6,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "bloom": ("Bloom", {"hidden_size": 96, "n_head": 6, "seq_length": POSITIONS}),
    "falcon": ("Falcon", {"hidden_size": 96, "num_attention_heads": 6}),
    "falcon-new": (
        "Falcon",
        {
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
        },
    ),
    "falcon-alibi": (
        "Falcon",
        {
            "hidden_size": 96,
            "num_attention_heads": 6,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    "starcoder2": (
        "Starcoder2",
        {**_PLAIN, "num_key_value_heads": 2, "sliding_window": WINDOW},
    ),
    "stablelm": ("StableLm", {**_PLAIN, "num_key_value_heads": 2}),
    "stablelm-parallel": (
        "StableLm",
        {
            **_PLAIN,
            "num_key_value_heads": 2,
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "use_qkv_bias": True,
        },
    ),
    "olmo2": ("Olmo2", {**_PLAIN, "num_key_value_heads": 2}),
    "granite": (
        "Granite",
        {
            **_PLAIN,
            "num_key_value_heads": 2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
        },
    ),
    "internlm2": ("Llama", _LLAMA),
}
_CONFIGS = {"Gemma3": "Gemma3TextConfig"}
_HEADS = {"GPT2": "GPT2LMHeadModel"}


def class_name(name: str) -> str:
    """The class of transformers that a model is made of."""
    family, _ = MODELS[name]
    return _HEADS.get(family, f"{family}ForCausalLM")


def build(name: str, *, seed: int = 0, **options: Any) -> Any:
    """
    A model of transformers in memory, in float32.

    Args:
        name: A key of `MODELS`; `internlm2` is a llama in another layout.
        seed: Of the weights.
        options: More entries of its config.
    """
    import torch
    import transformers

    family, settings = MODELS[name]
    layers = {"n_layer" if family in {"GPT2", "GPTJ", "Bloom"} else "num_hidden_layers"}
    config = getattr(transformers, _CONFIGS.get(family, f"{family}Config"))(
        **{
            "vocab_size": VOCAB_SIZE,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            **dict.fromkeys(layers, NUM_LAYERS),
            **settings,
            **options,
        }
    )
    model = getattr(transformers, class_name(name))(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:
                value.add_(0.2 * noise)
            else:
                is_table = any(x in key for x in ("embed", "wte", "wpe"))
                value.copy_(noise * (1.0 if is_table else value.shape[-1] ** -0.5))
    return model


def make(
    name: str, folder: Path, *, dtype: str = "float32", seed: int = 0, **options: Any
) -> Path:
    """
    Write a model and a tokenizer as a Hugging Face folder.

    Args:
        name: A key of `MODELS`.
        folder: To be made.
        dtype: Of the weights.
        seed: Of the weights.
        options: More entries of its config.

    Returns:
        `folder`.
    """
    import torch

    model = build(name, seed=seed, **options).to(getattr(torch, dtype))
    folder.mkdir(parents=True, exist_ok=True)
    if name == "internlm2":
        _save_internlm2(model, folder)
    else:
        model.save_pretrained(folder)
    _write_tokenizer(folder, VOCAB_SIZE)
    return folder


def _save_internlm2(model: Any, folder: Path) -> None:
    """The llama's weights by InternLM2's names, q, k and v grouped by key head."""
    from safetensors.torch import save_file

    config = model.config.to_dict()
    config |= {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "rope_theta": config.pop("rope_parameters")["rope_theta"],
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "bias": False,
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    weights = _regroup(model.state_dict(), config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _regroup(
    weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    import torch

    names = {
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    result: dict[str, Tensor] = {}
    for key, value in weights.items():
        new = key
        for old, other in names.items():
            new = new.replace(old, other)
        if "self_attn" not in new:
            result[new] = value.contiguous()
    heads, width = config["num_key_value_heads"], config["head_dim"]
    for index in range(config["num_hidden_layers"]):
        q, k, v = (
            torch.unflatten(
                weights[f"model.layers.{index}.self_attn.{part}_proj.weight"],
                0,
                (heads, -1, width),
            )
            for part in "qkv"
        )
        grouped = torch.cat((q, k, v), dim=1).flatten(0, 2)
        result[f"model.layers.{index}.attention.wqkv.weight"] = grouped.contiguous()
    return result
