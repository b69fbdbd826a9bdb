"""
Make folders of well-known models by their published shapes, with no weights in them.

Each has `config.json`, a tokenizer without a word, and one safetensors file: a true
header and a hole of the true length, which takes no room on most file systems. `size`,
`advise` and `cost` read no more than that; nothing can be built from it.

Usage: scripts/make_shapes.py FOLDER [NAME ...]

Sources: `config.json` of meta-llama/Llama-3.1-8B-Instruct and
meta-llama/Llama-2-70b-chat-hf.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B-Instruct": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "torch_dtype": "bfloat16",
    },
    "Llama-2-70b-chat-hf": {
        **_LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "torch_dtype": "float16",
    },
}
_DTYPES = {"bfloat16": "BF16", "float16": "F16"}
_ITEM_BYTES = 2
_TOKENIZER = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}


def main() -> int:
    """Write the folders that the command line names; returns the exit status."""
    root, *names = sys.argv[1:]
    for name in names or MODELS:
        folder = make_shapes(name, Path(root))
        print(folder)
    return 0


def make_shapes(name: str, root: Path) -> Path:
    """
    Write one folder.

    Args:
        name: Of `MODELS`.
        root: Where it is made.

    Returns:
        The folder.
    """
    config = MODELS[name]
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(_TOKENIZER) + "\n", "utf-8")
    header: dict[str, Any] = {}
    offset = 0
    for tensor, shape in sorted(shapes(config).items()):
        size = _ITEM_BYTES
        for length in shape:
            size *= length
        header[tensor] = {
            "dtype": _DTYPES[config["torch_dtype"]],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        os.ftruncate(stream.fileno(), 8 + len(head) + offset)
    return folder


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Llama, by its configuration."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    vocabulary = config["vocab_size"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocabulary, hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        found |= {
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.k_proj.weight": (keys, hidden),
            f"{layer}.self_attn.v_proj.weight": (keys, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"{layer}.mlp.up_proj.weight": (inner, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, inner),
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
