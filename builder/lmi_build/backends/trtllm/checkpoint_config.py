"""
`config.json` of a TensorRT-LLM checkpoint, as each release reads it.

Sources: TensorRT-LLM 0.8.0 to 0.16, models/modeling_utils.py `PretrainedConfig` and
`QuantConfig` (from 0.11 on unknown entries of `quantization` end the build),
models/{llama,qwen,gemma,gpt}/config.py, examples/{opt,gptneox}/convert_checkpoint.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.models import is_since, value_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
    from lmi_build.backends.trtllm.source_model import SourceModel
    from lmi_build.catalog.architectures import Architecture
    from lmi_build.digest import JSONValue
    from lmi_build.values.model import ModelGeometry

# From here on a checkpoint may describe experts in a table of their own.
MOE_TABLE_SINCE = "0.11"
# `MoeConfig` of layers/moe.py: experts cut like any linear; weights of the chosen ones
# sum to one.
MOE_TENSOR_PARALLEL = 2
MOE_RENORMALIZE = 1
# What Qwen's class wants for a feature that Qwen 2 does not use.
QWEN_SEQ_LENGTH = 8192
# All three are the tanh approximation there (functional.py `gelu`), and this name is in
# every release.
_GELU = {"gelu_pytorch_tanh": "gelu", "gelu_new": "gelu_new", "gelu_fast": "gelu_fast"}
ACTIVATIONS = frozenset({"relu", "gelu", "gelu_new", "gelu_fast", "silu"})
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
_ACTIVATIONS = ("activation_function", "hidden_activation", "hidden_act")
_BASES = ("rope_theta", "rotary_emb_base")
_PARTIALS = ("partial_rotary_factor", "rotary_pct")
# Entries of a stretched rotary embedding that `rotary_scaling` does not take.
_NOT_SCALING = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_DEFAULT_EPSILON = {"rms": 1e-6, "rms-plus-one": 1e-6, "layer": 1e-5}
DEFAULT_ROPE_BASE = 10000.0


def pretrained_config(
    model: SourceModel,
    config: Mapping[str, Any],
    version: str,
    mapping: Mapping2D,
    quantization: Mapping[str, JSONValue],
) -> dict[str, JSONValue]:
    """
    The checkpoint's `config.json`.

    Args:
        model: What is converted.
        config: The model's own `config.json`.
        version: Of TensorRT-LLM, such as `0.21.0`.
        mapping: How it is split.
        quantization: The section of that name (`quant_config`).

    Returns:
        A JSON object.
    """
    geometry, row = model.geometry, model.row
    rotary = model.architecture.rotary
    document: dict[str, JSONValue] = {
        "architecture": value_at(row.architecture, version),
        "dtype": model.dtype,
        "logits_dtype": "float32",
        "vocab_size": geometry.vocab_size,
        "hidden_size": geometry.hidden_size,
        "num_hidden_layers": geometry.num_layers,
        "num_attention_heads": geometry.num_attention_heads,
        "num_key_value_heads": geometry.num_key_value_heads,
        "head_size": geometry.head_dim,
        "intermediate_size": geometry.intermediate_size,
        "hidden_act": "swiglu" if model.num_experts else activation(model, config),
        "norm_epsilon": norm_epsilon(model, config),
        "position_embedding_type": "rope_gpt_neox" if rotary else "learned_absolute",
        "max_position_embeddings": geometry.max_position_embeddings,
        "use_parallel_embedding": model.parallel_embedding and mapping.tp > 1,
        "embedding_sharding_dim": 0,
        "mapping": {
            "world_size": mapping.world,
            "tp_size": mapping.tp,
            "pp_size": mapping.pp,
        },
        "quantization": dict(quantization),
    }
    return document | _FAMILIES[row.family](model, config, version)


def norm_epsilon(model: SourceModel, config: Mapping[str, Any]) -> float:
    """What a norm adds to a variance."""
    default = _DEFAULT_EPSILON[model.architecture.norm]
    return float(_value(model, config, "norm_eps", _EPSILONS, default))


def activation(model: SourceModel, config: Mapping[str, Any]) -> str:
    """The activation function by the name that every release knows."""
    name = str(_value(model, config, "activation", _ACTIVATIONS, "silu"))
    return _GELU.get(name, name)


def rope(
    model: SourceModel, config: Mapping[str, Any]
) -> tuple[float, float, str, dict[str, JSONValue]]:
    """
    The rotary embedding.

    Args:
        model: What is converted.
        config: The model's `config.json`, of transformers 4 or 5.

    Returns:
        Base of the wavelengths, share of a head that turns, kind of stretching
        (`default` for none) and what that takes.
    """
    options = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = str(options.get("rope_type", options.get("type", "default")))
    base = options.get("rope_theta")
    if base is None:
        base = _value(model, config, "rope_theta", _BASES, DEFAULT_ROPE_BASE)
    partial = options.get("partial_rotary_factor")
    if partial is None:
        partial = _value(model, config, "partial_rotary_factor", _PARTIALS, 1.0)
    rest = {key: value for key, value in options.items() if key not in _NOT_SCALING}
    return float(base), float(partial), kind, rest


def rotary_scaling(
    model: SourceModel, config: Mapping[str, Any]
) -> dict[str, JSONValue] | None:
    """`rotary_scaling`, or None where the rotary embedding is not stretched."""
    _, _, kind, rest = rope(model, config)
    return None if kind == "default" else {"type": kind, **rest}


def attention_window(
    architecture: Architecture, geometry: ModelGeometry, config: Mapping[str, Any]
) -> int | None:
    """
    Tokens that a block attends to, where they are fewer than the model's positions.

    No checkpoint says it: it is `max_attention_window_size` of the runtime.

    Args:
        architecture: Of Hugging Face.
        geometry: The model's sizes.
        config: Its `config.json`.
    """
    if not architecture.windows:
        return None
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return None
    return int(window) if window < geometry.max_position_embeddings else None


def _value(
    model: SourceModel,
    config: Mapping[str, Any],
    name: str,
    spellings: tuple[str, ...],
    default: Any,
) -> Any:
    """An entry of config.json by any of its names, or what its absence means."""
    architecture = model.architecture
    own = architecture.keys.get(name)
    for key in (own, *spellings) if own else spellings:
        if config.get(key) is not None:
            return config[key]
    default = architecture.defaults.get(name, default)
    return None if default == "none" else default


def _has_bias(model: SourceModel, module: str) -> bool:
    return f"{model.architecture.block(0)}.{module}.bias" in model.shapes


def _rotary(model: SourceModel, config: Mapping[str, Any]) -> dict[str, JSONValue]:
    return {
        "rotary_base": rope(model, config)[0],
        "rotary_scaling": rotary_scaling(model, config),
        "attn_bias": _has_bias(model, model.architecture.query),
        "mlp_bias": _has_bias(model, model.architecture.down),
    }


def _llama(
    model: SourceModel, config: Mapping[str, Any], version: str
) -> dict[str, JSONValue]:
    document = _rotary(model, config)
    if not model.num_experts:
        return document
    top_k = int(config.get("num_experts_per_tok", 2))
    if is_since(version, MOE_TABLE_SINCE):
        moe: dict[str, JSONValue] = {
            "num_experts": model.num_experts,
            "top_k": top_k,
            "normalization_mode": MOE_RENORMALIZE,
        }
        return {**document, "moe": moe}
    return {
        **document,
        "moe_num_experts": model.num_experts,
        "moe_top_k": top_k,
        "moe_tp_mode": MOE_TENSOR_PARALLEL,
        "moe_normalization_mode": MOE_RENORMALIZE,
    }


def _qwen(
    model: SourceModel, config: Mapping[str, Any], _version: str
) -> dict[str, JSONValue]:
    unused: dict[str, JSONValue] = {
        "qwen_type": "qwen2",
        "seq_length": QWEN_SEQ_LENGTH,
        "use_logn_attn": False,
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
    }
    return _rotary(model, config) | unused


def _gemma(
    model: SourceModel, config: Mapping[str, Any], _version: str
) -> dict[str, JSONValue]:
    shared: dict[str, JSONValue] = {"share_embedding_table": True}
    return _rotary(model, config) | (shared if model.shared_head else {})


def _gpt(
    _model: SourceModel, _config: Mapping[str, Any], _version: str
) -> dict[str, JSONValue]:
    return {
        "gpt_variant": "gpt2",
        "bias": True,
        "q_scaling": 1.0,
        "embedding_scale": None,
        "apply_query_key_layer_scaling": False,
        "rotary_pct": 1.0,
        "rotary_base": DEFAULT_ROPE_BASE,
        "rotary_scaling": None,
    }


def _opt(
    _model: SourceModel, _config: Mapping[str, Any], _version: str
) -> dict[str, JSONValue]:
    return {"do_layer_norm_before": True}


def _gptneox(
    model: SourceModel, config: Mapping[str, Any], _version: str
) -> dict[str, JSONValue]:
    base, partial, _, _ = rope(model, config)
    return {"rotary_emb_base": base, "rotary_pct": partial}


_FAMILIES: Mapping[
    str, Callable[[SourceModel, Mapping[str, Any], str], dict[str, JSONValue]]
] = {
    "llama": _llama,
    "qwen": _qwen,
    "gemma": _gemma,
    "gpt": _gpt,
    "opt": _opt,
    "gptneox": _gptneox,
}
