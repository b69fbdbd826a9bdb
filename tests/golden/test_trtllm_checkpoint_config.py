"""config.json of checkpoints of well-known models, for releases that read it apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmi_build.backends.trtllm.checkpoint_checks import checkpoint_problems
from lmi_build.backends.trtllm.checkpoint_config import pretrained_config
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.source_model import source_model
from lmi_build.values.model import geometry_from_config

GOLDEN = Path(__file__).parent / "trtllm-checkpoint-configs.json"
VERSIONS = ("0.8.0", "0.9.0", "0.10.0", "0.11.0", "0.12.0", "0.16.0", "0.21.0rc1")
MAPPING = Mapping2D(tp=2)
NONE: dict[str, Any] = {"quant_algo": None, "kv_cache_quant_algo": None}
# As published, without what does not matter here.
MODELS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 32000,
    },
    "Mixtral-8x7B-v0.1": {
        "architectures": ["MixtralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mixtral",
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "vocab_size": 32000,
    },
    "Qwen2-7B": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "gemma-7b": {
        "architectures": ["GemmaForCausalLM"],
        "head_dim": 256,
        "hidden_act": "gelu",
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "max_position_embeddings": 8192,
        "model_type": "gemma",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "vocab_size": 256000,
    },
    "gpt2": {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    },
    "opt-1.3b": {
        "activation_function": "relu",
        "architectures": ["OPTForCausalLM"],
        "do_layer_norm_before": True,
        "ffn_dim": 8192,
        "hidden_size": 2048,
        "max_position_embeddings": 2048,
        "model_type": "opt",
        "num_attention_heads": 32,
        "num_hidden_layers": 24,
        "vocab_size": 50272,
        "word_embed_proj_dim": 2048,
    },
    "pythia-1b": {
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_act": "gelu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neox",
        "num_attention_heads": 8,
        "num_hidden_layers": 16,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    },
}


def _document(config: dict[str, Any], version: str) -> Any:
    """The checkpoint's config.json, or why there is none."""
    geometry = geometry_from_config(config)
    problems = checkpoint_problems(
        geometry, config, {}, version=version, dtype="bfloat16", mapping=MAPPING
    )
    refused = [problem.message for problem in problems]
    if refused:
        return refused
    bias = "model.layers.0.self_attn.q_proj.bias"
    shapes = {bias: (1,)} if config["model_type"] == "qwen2" else {}
    model = source_model(geometry, config, shapes, version=version, dtype="bfloat16")
    return pretrained_config(model, config, version, MAPPING, NONE)


def test_configs_are_as_recorded(*, update_golden: bool) -> None:
    """Every entry of every model's config.json, for each release."""
    found = {
        name: {version: _document(config, version) for version in VERSIONS}
        for name, config in MODELS.items()
    }
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if update_golden:
        GOLDEN.write_text(text, "utf-8")

    assert GOLDEN.read_text("utf-8") == text


@pytest.mark.parametrize("name", list(MODELS))
def test_configs_of_both_spellings_agree(name: str) -> None:
    """Transformers 5 keeps the rotary embedding in one table."""
    config = MODELS[name]
    scaling = dict(config.get("rope_scaling") or {"rope_type": "default"})
    newer = {
        key: value
        for key, value in config.items()
        if key not in {"rope_scaling", "rope_theta", "rotary_emb_base", "rotary_pct"}
    }
    if "rope_theta" in config or "rotary_emb_base" in config:
        base = config.get("rope_theta", config.get("rotary_emb_base"))
        newer["rope_parameters"] = {**scaling, "rope_theta": base}
        if "rotary_pct" in config:
            partial = config["rotary_pct"]
            newer["rope_parameters"]["partial_rotary_factor"] = partial

    assert _document(newer, "0.16.0") == _document(config, "0.16.0")
