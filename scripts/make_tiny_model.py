"""
A tiny random decoder in a Hugging Face folder, for tests that need a whole model.

The weights are random but seeded; the tokenizer is a real byte-level BPE trained on
the text below, so every string encodes and decodes exactly. Nothing is downloaded.

    python scripts/make_tiny_model.py OUT [--architecture qwen2] [--untied] ...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Enough ordinary prose for a few hundred merges; fixed, so that the tokenizer is too.
_TRAINING_TEXT = """
A build takes a recipe and a model and makes one artifact of them. The recipe says
which model, how its weights become smaller, how long a prompt may be, how many
requests are scheduled together and where the result is published. The model is read
one tensor after another, and every tensor that goes in must come out once. A stage
that was built before is not built again: its name was computed from its inputs before
any work started, and the store already holds what that name stands for. When a stage
fails, the error says what is wrong, where it stands and what to do about it. When it
is stopped, it goes on where it was. The weights of a layer are rounded to a few bits
in groups that share one scale, and the error of each column is carried over to the
columns that are still to come. What is the capital of France? The capital of France
is Paris. One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve.
"""


_SPECIAL_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
_SAME_IN_ALL: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "use_cache": True,
}


def make_tiny_model(  # noqa: PLR0913
    out: Path,
    *,
    architecture: str = "llama",
    num_layers: int = 2,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    num_attention_heads: int = 4,
    num_key_value_heads: int = 2,
    vocab_size: int = 512,
    max_position_embeddings: int = 512,
    tie_word_embeddings: bool = True,
    rope_scaling: dict[str, Any] | None = None,
    dtype: str = "bfloat16",
    num_shards: int = 1,
    seed: int = 0,
) -> Path:
    """
    Write a model that transformers loads as it is.

    Args:
        out: Folder to make; it may exist.
        architecture: `llama`, `mistral` or `qwen2` (the last has q, k and v biases).
        num_layers: Decoder blocks.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the feed-forward part.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads; fewer than query heads is GQA.
        vocab_size: Rows of the embedding, at least 259.
        max_position_embeddings: Positions.
        tie_word_embeddings: Whether the head shares the embedding's weights.
        rope_scaling: Extra entries of `rope_parameters`, such as llama3's.
        dtype: `bfloat16`, `float16` or `float32`.
        num_shards: Safetensors files; more than one comes with an index.
        seed: Of the weights.

    Returns:
        `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        **_SAME_IN_ALL,
        **_SPECIAL_TOKENS,
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "dtype": dtype,
        "head_dim": hidden_size // num_attention_heads,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_position_embeddings,
        "num_attention_heads": num_attention_heads,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": num_key_value_heads,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "default",
            **(rope_scaling or {}),
        },
        "tie_word_embeddings": tie_word_embeddings,
        "vocab_size": vocab_size,
    }
    if architecture == "mistral":
        config["sliding_window"] = None
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", _SPECIAL_TOKENS)
    _write_tokenizer(out, vocab_size)
    _write_weights(out, _make_weights(config, seed), num_shards)
    return out


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def _write_tokenizer(out: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT.strip().split("\n"), trainer)
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL_TOKENS[1],
            "eos_token": SPECIAL_TOKENS[2],
            "pad_token": SPECIAL_TOKENS[2],
            "unk_token": SPECIAL_TOKENS[0],
            "model_max_length": 512,
            "clean_up_tokenization_spaces": False,
        },
    )
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


def _make_weights(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config["dtype"])
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q_size = config["num_attention_heads"] * config["head_dim"]
    kv_size = config["num_key_value_heads"] * config["head_dim"]

    def random(*shape: int, scale: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    def linear(rows: int, columns: int) -> Tensor:
        return random(rows, columns, scale=columns**-0.5)

    def norm() -> Tensor:
        return (1 + 0.1 * torch.randn(hidden, generator=generator)).to(dtype)

    weights = {
        "model.embed_tokens.weight": random(config["vocab_size"], hidden, scale=0.3)
    }
    for index in range(config["num_hidden_layers"]):
        block = f"model.layers.{index}"
        for name, rows, columns in (
            ("self_attn.q_proj", q_size, hidden),
            ("self_attn.k_proj", kv_size, hidden),
            ("self_attn.v_proj", kv_size, hidden),
            ("self_attn.o_proj", hidden, q_size),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            weights[f"{block}.{name}.weight"] = linear(rows, columns)
            if config["model_type"] == "qwen2" and name[10:] in {
                "q_proj",
                "k_proj",
                "v_proj",
            }:
                weights[f"{block}.{name}.bias"] = random(rows, scale=0.1)
        weights[f"{block}.input_layernorm.weight"] = norm()
        weights[f"{block}.post_attention_layernorm.weight"] = norm()
    weights["model.norm.weight"] = norm()
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = random(config["vocab_size"], hidden, scale=0.3)
    return weights


def _write_weights(out: Path, weights: dict[str, Tensor], num_shards: int) -> None:
    from safetensors.torch import save_file

    metadata = {"format": "pt"}
    if num_shards == 1:
        save_file(weights, out / "model.safetensors", metadata=metadata)
        return
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: weights[name] for name in list(weights)[shard::num_shards]}
        save_file(part, out / file, metadata=metadata)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(out / "model.safetensors.index.json", index)


def main() -> None:
    """Write a model to the folder on the command line."""
    parser = argparse.ArgumentParser(description="make a tiny random model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="llama")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_tiny_model(
        arguments.out,
        architecture=arguments.architecture,
        num_layers=arguments.layers,
        tie_word_embeddings=not arguments.untied,
        dtype=arguments.dtype,
        seed=arguments.seed,
    )
    print(arguments.out)


if __name__ == "__main__":
    main()
