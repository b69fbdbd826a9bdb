"""Tiny models, whole and by the rules of their formats, made in memory."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 12,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (12, 8),
    "model.norm.weight": (8,),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
}


def count(shape: tuple[int, ...]) -> int:
    """Elements of a shape."""
    product = 1
    for size in shape:
        product *= size
    return product


def safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A float32 safetensors file; element i of every tensor is i / 8."""
    table: dict[str, Any] = {}
    data = b""
    for name, shape in shapes.items():
        values = [i / 8 for i in range(count(shape))]
        body = struct.pack(f"<{len(values)}f", *values)
        table[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(body)],
        }
        data += body
    head = json.dumps(table).encode()
    return struct.pack("<Q", len(head)) + head + data


def hf_files(*, config: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """A whole Hugging Face folder, with some files that nobody needs."""
    return {
        "config.json": json.dumps(config or CONFIG).encode(),
        "generation_config.json": b'{"eos_token_id": 2}',
        "model.safetensors": safetensors(SHAPES),
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "LICENSE": b"Apache-2.0",
        "training.log": b"x" * 1000,
        "onnx/model.onnx": b"y" * 100,
    }


def sentence_files() -> dict[str, bytes]:
    """What sentence-transformers adds, with weights that nobody can read yet."""
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}Normalize"},
    ]
    return {
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
        "sentence_bert_config.json": b'{"max_seq_length": 64}',
        "config_sentence_transformers.json": b"{}",
        "1_Pooling/notes.txt": b"n",
    }


_BLOCK = {
    "attn_norm": (8,),
    "ffn_norm": (8,),
    "attn_q": (8, 8),
    "attn_k": (4, 8),
    "attn_v": (4, 8),
    "attn_output": (8, 8),
    "ffn_gate": (16, 8),
    "ffn_up": (16, 8),
    "ffn_down": (8, 16),
}
GGUF_SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (12, 8),
    "output_norm.weight": (8,),
    **{f"blk.0.{name}.weight": shape for name, shape in _BLOCK.items()},
}
# The 12 tokens need to make a byte-level vocabulary with one merge.
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "1", "2", "\u0120", "d", "e"]
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.license": "mit",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 16,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 3, *[1] * 9],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}",
}


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if all(isinstance(item, str) for item in value):
        head = struct.pack("<IIQ", 9, 8, len(value))
        return head + b"".join(_text(item) for item in value)
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def gguf(
    *,
    metadata: Mapping[str, Any] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    version: int = 3,
) -> bytes:
    """A float32 GGUF file; element i of every tensor is i / 8."""
    metadata = METADATA if metadata is None else metadata
    shapes = GGUF_SHAPES if shapes is None else shapes
    out = b"GGUF" + struct.pack("<IQQ", version, len(shapes), len(metadata))
    for key, value in metadata.items():
        out += _text(key) + _value(value)
    data = b""
    for name, shape in shapes.items():
        out += _text(name) + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        out += struct.pack("<IQ", 0, len(data))
        values = [i / 8 for i in range(count(shape))]
        data += struct.pack(f"<{len(values)}f", *values)
        data += b"\0" * (-len(data) % 32)
    return out + b"\0" * (-len(out) % 32) + data
