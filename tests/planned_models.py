"""Models of the shipped recipes by their sizes alone, and a world that is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build import registry
from lmi_build.digest import Digest, JSONValue, digest_bytes
from lmi_build.plan.planner import World
from lmi_build.spi import Answer, Host
from lmi_build.values.model import (
    FileFact,
    ModelFacts,
    TensorFact,
    geometry_from_config,
)
from lmi_build.values.settings import Settings
from make_shapes import MODELS
from make_shapes import shapes as llama_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmi_build.values.recipe import Recipe

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted(RECIPES.glob("*/*.yaml"))
# The sizes of each recipe's model, by its folder, with two layers.
_LLAMA: dict[str, JSONValue] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, JSONValue]] = {
    "smollm2-135m": {
        **_LLAMA,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {**MODELS["Llama-3.1-8B-Instruct"], "num_hidden_layers": 2},
    "llama-2-70b": {**MODELS["Llama-2-70b-chat-hf"], "num_hidden_layers": 2},
    "llama-2-13b": {
        **_LLAMA,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "mistral-7b": {
        **_LLAMA,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
    },
    "all-minilm-l6": {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "num_hidden_layers": 6,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 12,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
    },
    "flan-t5-xl": {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "num_layers": 2,
        "num_decoder_layers": 2,
        "d_model": 2048,
        "d_ff": 5120,
        "d_kv": 64,
        "num_heads": 32,
        "vocab_size": 32128,
        "n_positions": 512,
    },
}


# What plans ask of a model's files; one is enough for most.
FILES = {
    "all-minilm-l6": (
        "1_Pooling/config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
    ),
}


def facts(folder: str) -> ModelFacts:
    """A model pinned down, without a model."""
    config = CONFIGS[folder]
    llama = config["model_type"] in {"llama", "mistral"}
    shapes = llama_shapes(config) if llama else {"shared.weight": (32128, 2048)}
    return ModelFacts(
        kind="gguf",
        source="model.gguf",
        location="/nowhere/model.gguf",
        revision="",
        geometry=geometry_from_config(config),
        config=config,
        files=tuple(
            FileFact(path=path, size=98362432, digest=digest_bytes(b"model"))
            for path in FILES.get(folder, ("model.gguf",))
        ),
        tensors=tuple(
            TensorFact(name=n, dtype="bfloat16", shape=s, file="model.safetensors")
            for n, s in sorted(shapes.items())
        ),
        dtype="bfloat16",
    )


def world_of(recipes: Iterable[Recipe], folder: str, *, kind: str = "gguf") -> World:
    """
    What the planner may know, the same on every machine.

    Args:
        recipes: All of one model.
        folder: Of `recipes/`, which names the model.
        kind: Of its source: `gguf` lies here, `hub` does not.
    """
    model = replace(facts(folder), kind=kind)
    return World(
        facts={recipe.name: model for recipe in recipes},
        quantizer=registry.quantizer,
        backend=registry.backend,
        versions=lambda names: dict.fromkeys(sorted(names), "1.0"),
        handler_digest=lambda name: Digest(digest_bytes(name.encode())),
        host=Host(
            architecture="x86_64",
            runner="local",
            versions=lambda names: dict.fromkeys(sorted(names), "1.0"),
            ask=lambda words: Answer(status=127, output=words[0]),
        ),
        num_cores=2,
        settings=Settings(cache_dir=Path("/nowhere")),
    )
