"""A random Llama of 43,000 weights in a Hugging Face folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

# All bytes, three special tokens and some merges.
VOCAB_SIZE = 288
# Two layers, so that their caches can be confused.
_HIDDEN, _INNER, _HEADS, _KV_HEADS, _HEAD_DIM, _LAYERS = 32, 64, 4, 2, 16, 2
_SEED = 7
_SPECIALS = ("<unk>", "<s>", "</s>")
_TEXT = """
One artifact is made of a recipe and a model, and it keeps what the recipe promises:
how long a prompt may be, how long an answer, and how many requests share a pass. What
is over a promise is refused, with both numbers, and what is exactly at it is not.
"""


def make_tiny_llama(out: Path) -> Path:
    """
    Write a model that transformers loads as it is, with NumPy and a real tokenizer.

    Args:
        out: Folder to make.

    Returns:
        `out`.
    """
    import numpy as np
    from safetensors.numpy import save_file

    out.mkdir(parents=True)
    _write(out / "config.json", _config())
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    _write(out / "generation_config.json", ends)
    _write_tokenizer(out)
    random = np.random.default_rng(_SEED)
    tensors = {}
    for name, shape in sorted(_shapes().items()):
        if len(shape) == 1:
            values = 1 + 0.1 * random.standard_normal(shape)
        else:
            values = random.standard_normal(shape) / np.sqrt(shape[1])
        tensors[name] = values.astype(np.float32)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 1,
        "dtype": "float32",
        "eos_token_id": 2,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "num_attention_heads": _HEADS,
        "num_hidden_layers": _LAYERS,
        "num_key_value_heads": _KV_HEADS,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": VOCAB_SIZE,
    }


def _shapes() -> dict[str, tuple[int, ...]]:
    wide, narrow = _HEADS * _HEAD_DIM, _KV_HEADS * _HEAD_DIM
    rows = {
        "self_attn.q_proj": (wide, _HIDDEN),
        "self_attn.k_proj": (narrow, _HIDDEN),
        "self_attn.v_proj": (narrow, _HIDDEN),
        "self_attn.o_proj": (_HIDDEN, wide),
        "mlp.gate_proj": (_INNER, _HIDDEN),
        "mlp.up_proj": (_INNER, _HIDDEN),
        "mlp.down_proj": (_HIDDEN, _INNER),
        "input_layernorm": (_HIDDEN,),
        "post_attention_layernorm": (_HIDDEN,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(_LAYERS)
        for name, shape in rows.items()
    }
    shapes["model.embed_tokens.weight"] = (VOCAB_SIZE, _HIDDEN)
    shapes["lm_head.weight"] = (VOCAB_SIZE, _HIDDEN)
    shapes["model.norm.weight"] = (_HIDDEN,)
    return shapes


def _write_tokenizer(out: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT.split("\n"), trainer)
    tokenizer.save(str(out / "tokenizer.json"))
    unknown, begin, end = _SPECIALS
    names = {"bos_token": begin, "eos_token": end, "unk_token": unknown}
    _write(
        out / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": end, **names},
    )


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
