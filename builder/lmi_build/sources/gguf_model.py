"""
What a GGUF file of the Llama family is in Hugging Face's words.

Names and sizes are ours to translate; the same function makes the configuration that
the planner sees and the `config.json` that fetch writes, so they cannot differ.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lmi_build.errors import SourceInvalid, Unsupported
from lmi_build.sources.gguf import ArrayLength
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue
    from lmi_build.sources.gguf import GgufHeader

# general.architecture -> (model_type, class). Llama's query and key rows are
# interleaved for ggml's rotary embedding; Qwen's are not.
ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)\Z")


def hf_name(name: str) -> str | None:
    """The Hugging Face name of a tensor, or None when there is none."""
    match = _NAME.match(name)
    if match is None:
        return None
    layer, part, leaf = match.groups()
    if layer is None:
        stem = _TOP.get(part)
        return f"{stem}.{leaf}" if stem else None
    stem = _BLOCK.get(part)
    return f"model.layers.{int(layer)}.{stem}.{leaf}" if stem else None


def rows_are_interleaved(architecture: str, name: str) -> bool:
    """Whether ggml's converter reordered a tensor's rows, per head."""
    return architecture == "llama" and bool(
        re.match(r"blk\.\d+\.attn_[qk]\.(weight|bias)\Z", name)
    )


class _Metadata:
    """Typed access to metadata, with errors that name the key."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str, file: str) -> None:
        self._all = metadata
        self._prefix = prefix
        self._file = file

    def number(self, key: str, *, default: int | None = None) -> int:
        name = f"{self._prefix}.{key}"
        value = self._all.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SourceInvalid(
                f"`{self._file}` has {name} = {value!r}, not a positive whole number",
                code="source.bad-gguf",
                hints=("convert the model to GGUF again with a current converter",),
            )
        return value

    def real(self, key: str, *, default: float | None = None) -> float:
        name = f"{self._prefix}.{key}"
        value = self._all.get(name, default)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise SourceInvalid(
                f"`{self._file}` has {name} = {value!r}, not a positive number",
                code="source.bad-gguf",
                hints=("convert the model to GGUF again with a current converter",),
            )
        return value

    def get(self, key: str) -> Any:
        return self._all.get(f"{self._prefix}.{key}")


def _architecture(header: GgufHeader, file: str) -> str:
    """The name of the header's architecture, one of `ARCHITECTURES`."""
    found = header.metadata.get("general.architecture")
    if not isinstance(found, str) or found not in ARCHITECTURES:
        raise Unsupported(
            f"`{file}` has GGUF architecture {found!r}; this reader knows"
            f" {join_words(sorted(ARCHITECTURES), last='and')}",
            code="source.gguf-architecture",
            hints=("name the model's safetensors repository in `model.source`",),
        )
    return found


def config_from_gguf(header: GgufHeader, *, dtype: str, file: str) -> dict[str, Any]:
    """
    The `config.json` of a GGUF file.

    Args:
        header: Its header.
        dtype: What its weights become.
        file: For messages.

    Raises:
        Unsupported: `source.gguf-architecture` or `source.gguf-feature`.
        SourceInvalid: `source.bad-gguf`: a size is missing or makes no sense.
    """
    architecture = _architecture(header, file)
    model_type, class_name = ARCHITECTURES[architecture]
    about = _Metadata(header.metadata, architecture, file)
    _refuse_features(header, about, file)
    heads = about.number("attention.head_count")
    hidden = about.number("embedding_length")
    head_dim = about.number(
        "attention.key_length",
        default=about.number("rope.dimension_count", default=max(hidden // heads, 1)),
    )
    num_layers = about.number("block_count")
    if num_layers > len(header.tensors):
        raise SourceInvalid(
            f"`{file}` announces {num_layers:,} layers and holds"
            f" {len(header.tensors):,} tensors",
            code="source.bad-gguf",
            hints=("fetch the file again; if it is split, join its parts first",),
        )
    names = {tensor.name for tensor in header.tensors}
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": about.number("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": about.number("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "vocab_size": _vocab_size(header, about),
        "max_position_embeddings": about.number("context_length"),
        "rms_norm_eps": about.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": about.real("rope.freq_base", default=10000.0),
        "rope_scaling": _rope_scaling(about),
        "hidden_act": "silu",
        # Qwen 2 always has these biases and no word for them.
        "attention_bias": model_type == "qwen2" or "blk.0.attn_q.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
        "torch_dtype": dtype,
        "use_cache": True,
        **token_ids(header.metadata),
    }
    if model_type == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in names
    _check_shapes(header, config, file)
    return config


def token_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the special tokens that a file names, in `config.json`'s spelling."""
    spellings = {
        "bos_token_id": "bos_token_id",
        "eos_token_id": "eos_token_id",
        "pad_token_id": "padding_token_id",
        "unk_token_id": "unknown_token_id",
    }
    return {
        ours: metadata[f"tokenizer.ggml.{theirs}"]
        for ours, theirs in spellings.items()
        if isinstance(metadata.get(f"tokenizer.ggml.{theirs}"), int)
    }


def _vocab_size(header: GgufHeader, about: _Metadata) -> int:
    # The embedding has the last word: files exist whose `vocab_size` lacks padding.
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight":
            return tensor.shape[0]
    return about.number("vocab_size")


def _rope_scaling(about: _Metadata) -> dict[str, JSONValue] | None:
    if about.get("rope.scaling.type") == "linear":
        return {"rope_type": "linear", "factor": about.real("rope.scaling.factor")}
    return None


def _refuse_features(header: GgufHeader, about: _Metadata, file: str) -> None:
    """What the file can say and `config_from_gguf` could only drop."""
    scaling = about.get("rope.scaling.type")
    refused = ""
    if about.get("expert_count"):
        refused = f"{about.get('expert_count')} experts"
    elif scaling not in {None, "none", "linear"}:
        refused = f"rope scaling {scaling!r}"
    elif any(tensor.name == "rope_freqs.weight" for tensor in header.tensors):
        refused = "rotary frequencies of its own (`rope_freqs.weight`)"
    elif isinstance(about.get("attention.head_count_kv"), (list, ArrayLength)):
        refused = "another number of key heads in each layer"
    if refused:
        raise Unsupported(
            f"`{file}` has {refused}, which a GGUF file does not describe well enough"
            " to rebuild the model exactly",
            code="source.gguf-feature",
            hints=("name the model's safetensors repository in `model.source`",),
        )


def _check_shapes(header: GgufHeader, config: Mapping[str, Any], file: str) -> None:
    expected = expected_shapes(config)
    found: dict[str, tuple[int, ...]] = {}
    for tensor in header.tensors:
        name = hf_name(tensor.name)
        if name is None or name not in expected:
            raise Unsupported(
                f"`{file}` holds tensor `{tensor.name}`, which a"
                f" {config['architectures'][0]} of its sizes does not have",
                code="source.gguf-feature",
                hints=("name the model's safetensors repository in `model.source`",),
            )
        found[name] = tensor.shape
        if tensor.shape != expected[name]:
            raise SourceInvalid(
                f"`{file}`: `{tensor.name}` has shape {list(tensor.shape)}, its"
                f" metadata asks for {list(expected[name])}",
                code="source.bad-gguf",
                hints=("convert the model to GGUF again with a current converter",),
            )
    missing = sorted(set(expected) - set(found))
    if missing:
        raise SourceInvalid(
            f"`{file}` lacks {len(missing)} of {len(expected)} tensors,"
            f" first `{missing[0]}`",
            code="source.bad-gguf",
            hints=("fetch the file again; if it is split, join its parts first",),
        )


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this configuration has, by Hugging Face name."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config["head_dim"]
    query = config["num_attention_heads"] * head_dim
    key = config["num_key_value_heads"] * head_dim
    top = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        top["lm_head.weight"] = (config["vocab_size"], hidden)
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (key, hidden),
        "self_attn.v_proj.weight": (key, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config["model_type"] == "qwen3":
        block["self_attn.q_norm.weight"] = (head_dim,)
        block["self_attn.k_norm.weight"] = (head_dim,)
    if config["attention_bias"]:
        block["self_attn.q_proj.bias"] = (query,)
        block["self_attn.k_proj.bias"] = (key,)
        block["self_attn.v_proj.bias"] = (key,)
        if config["model_type"] == "llama":
            block["self_attn.o_proj.bias"] = (hidden,)
    if config.get("mlp_bias"):
        block["mlp.gate_proj.bias"] = (inner,)
        block["mlp.up_proj.bias"] = (inner,)
        block["mlp.down_proj.bias"] = (hidden,)
    layers = range(config["num_hidden_layers"])
    return top | {
        f"model.layers.{layer}.{name}": shape
        for layer in layers
        for name, shape in block.items()
    }
