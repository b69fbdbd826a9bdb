"""SmolLM2-135M by its sizes alone, for what reads no weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.values.model import ModelFacts, geometry_from_config
from lmi_build.values.quant import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue

# Of its config.json.
CONFIG: Mapping[str, JSONValue] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
GPTQ = QuantScheme(
    weight_bits=4,
    weight_dtype="int",
    group_size=64,
    sym=True,
    activation_bits=16,
    packing="gptq",
)


def facts(**config: Any) -> ModelFacts:
    """
    The model, pinned down without files.

    Args:
        **config: Entries of `config.json` that are others, or further ones.
    """
    document = {**CONFIG, **config}
    return ModelFacts(
        kind="folder",
        source="m",
        location="m",
        revision="",
        geometry=geometry_from_config(document),
        config=document,
        files=(),
        tensors=(),
        dtype="bfloat16",
    )
