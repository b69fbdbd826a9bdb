"""The sizes of a model, however its config.json spells them."""

from __future__ import annotations

from typing import Any

import pytest

from lmi_build.values.model import ModelGeometry, geometry_from_config

# The same decoder as six families write it; widths no default could give.
SPELLINGS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "max_position_embeddings": 77,
    },
    "gpt2": {"n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 77},
    "bloom": {"n_embed": 96, "n_layer": 3, "n_head": 6, "seq_length": 77},
    "t5": {"d_model": 96, "num_layers": 3, "num_heads": 6, "n_positions": 77},
    "distilbert": {
        "dim": 96,
        "n_layers": 3,
        "n_heads": 6,
        "max_position_embeddings": 77,
        "hidden_dim": 384,
    },
    "nested": {
        "text_config": {
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "max_position_embeddings": 77,
        }
    },
}


@pytest.mark.parametrize("family", SPELLINGS)
def test_every_spelling_gives_the_same_sizes(family: str) -> None:
    """Old and new names of a size are one size."""
    found = geometry_from_config({**SPELLINGS[family], "vocab_size": 500})

    assert found == ModelGeometry(
        architecture="unknown",
        model_type="unknown",
        num_layers=3,
        hidden_size=96,
        intermediate_size=384,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=16,
        vocab_size=500,
        max_position_embeddings=77,
        tie_word_embeddings=False,
    )


def test_a_missing_size_is_named_as_it_is_usually_spelt() -> None:
    """The reader looks for one name, so one name is told."""
    with pytest.raises(ValueError, match="`hidden_size` is missing"):
        geometry_from_config({"n_layer": 3, "n_head": 6, "vocab_size": 500})


def test_relative_positions_have_no_end() -> None:
    """As transformers 5 writes T5: no `n_positions`; a stated one still counts."""
    from transformers import T5Config

    config = T5Config(d_model=96, num_layers=3, num_heads=6, vocab_size=500).to_dict()
    assert "n_positions" not in config

    found = geometry_from_config(config)
    assert found.max_position_embeddings == 0
    assert found.max_tokens > 10**9
    stated = geometry_from_config({**config, "n_positions": 512})
    assert stated.max_position_embeddings == stated.max_tokens == 512
    for buckets in (None, 0):
        config["relative_attention_num_buckets"] = buckets
        with pytest.raises(ValueError, match="`max_position_embeddings` is missing"):
            geometry_from_config(config)
