"""A model of eight billion weights by its shapes, and a recipe for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.values.bounds import Bounds
from lmi_build.values.model import (
    FileFact,
    ModelFacts,
    TensorFact,
    geometry_from_config,
)
from lmi_build.values.recipe import CompileSpec
from packed import sample_recipe

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue
    from lmi_build.values.recipe import Recipe

HIDDEN, INNER, LAYERS, KEYS, VOCABULARY = 4096, 14336, 32, 1024, 128256
CONFIG: dict[str, JSONValue] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}


def facts_8b() -> ModelFacts:
    """Llama 3.1 8B, as its headers describe it."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.self_attn.k_proj.weight": (KEYS, HIDDEN),
            f"{layer}.self_attn.v_proj.weight": (KEYS, HIDDEN),
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{layer}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{layer}.mlp.down_proj.weight": (HIDDEN, INNER),
            f"{layer}.input_layernorm.weight": (HIDDEN,),
            f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
        }
    file = "model.safetensors"
    return ModelFacts(
        kind="folder",
        source="llama",
        location="llama",
        revision="",
        geometry=geometry_from_config(CONFIG),
        config=CONFIG,
        files=(FileFact(path=file, size=16_060_522_240, digest=f"sha256:{'0' * 64}"),),
        tensors=tuple(
            TensorFact(name=name, dtype="bfloat16", shape=shape, file=file)
            for name, shape in sorted(shapes.items())
        ),
        dtype="bfloat16",
    )


def recipe_8b(*, tensor_parallel_size: int = 1, max_output_len: int = 512) -> Recipe:
    """The model as it is, for TensorRT-LLM on four A10G."""
    return replace(
        sample_recipe(),
        bounds=Bounds(
            max_input_len=2048, max_output_len=max_output_len, max_batch_size=8
        ),
        compile=CompileSpec(
            backend="tensorrt-llm",
            target="ml.g5.12xlarge",
            release="djl-tensorrtllm-0.33.0",
            tensor_parallel_size=tensor_parallel_size,
        ),
    )
