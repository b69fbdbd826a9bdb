"""Llama 3.1 8B by its sizes alone, for what reads no weight."""

from __future__ import annotations

from lmi_build.values.model import ModelGeometry

LLAMA_8B = ModelGeometry(
    architecture="LlamaForCausalLM",
    model_type="llama",
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
)
