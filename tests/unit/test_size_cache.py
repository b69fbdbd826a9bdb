"""The shape of a cache, against the quantizer's own reading and by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import tiny_architectures
from lmi_build.catalog.architectures import architectures
from lmi_build.catalog.runtimes import runtimes
from lmi_build.decoders.decoder_config import read_config
from lmi_build.sizing.cache import cache_bytes, cache_shape
from lmi_build.values.bounds import Bounds
from lmi_build.values.model import geometry_from_config

if TYPE_CHECKING:
    from collections.abc import Mapping

BOUNDS = Bounds(max_input_len=90, max_output_len=11, max_batch_size=3)
LATENT: Mapping[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_hidden_layers": 27,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "vocab_size": 102400,
    "max_position_embeddings": 163840,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}


def config_of(name: str) -> dict[str, Any]:
    """`config.json` of a tiny model."""
    import transformers

    family, settings = tiny_architectures.MODELS[name]
    layers = "n_layer" if family in {"GPT2", "GPTJ", "Bloom"} else "num_hidden_layers"
    kind = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    told = {"vocab_size": tiny_architectures.VOCAB_SIZE, layers: 3, **settings}
    config: dict[str, Any] = getattr(transformers, kind)(**told).to_dict()
    return {**config, "architectures": [tiny_architectures.class_name(name)]}


@pytest.mark.parametrize("name", sorted(set(tiny_architectures.MODELS) - {"internlm2"}))
def test_windows_and_heads_are_those_that_the_quantizer_computes(name: str) -> None:
    """Two readers of the same config, each with its own code, agree on every layer."""
    config = config_of(name)
    walked = read_config(config)
    shape = cache_shape(config, geometry_from_config(config))
    windows = [walked.window_of(index) for index in range(walked.num_layers)]
    slides = [window for window in windows if window is not None]

    assert config["architectures"][0] in architectures()
    assert (shape.num_sliding, shape.num_full) == (
        len(slides),
        walked.num_layers - len(slides),
    )
    assert shape.window == (slides[0] if slides else 0)
    assert shape.num_kv_heads == walked.num_kv_heads
    assert shape.head_dim == walked.head_dim
    assert shape.unknown == ()


def test_blocks_are_whole_and_beams_have_their_own() -> None:
    """101 tokens are 7 blocks of 16 in vLLM, and 2 of 64 in TensorRT-LLM."""
    config = config_of("llama")
    shape = cache_shape(config, geometry_from_config(config))
    found = {
        name: cache_bytes(shape, BOUNDS, runtimes()[name], dtype_bits=16, tp=1).high
        for name in ("vllm", "tensorrt-llm", "neuronx")
    }
    token = 3 * 2 * 2 * 32 * 2

    assert found == {
        "vllm": 3 * 112 * token,
        "tensorrt-llm": 3 * 128 * token,
        "neuronx": 3 * 101 * token,
    }


def test_key_heads_are_copied_where_ranks_are_more() -> None:
    """Two heads over 1, 2, 4 and 8 ranks: each rank has at least one."""
    config = config_of("llama")
    shape = cache_shape(config, geometry_from_config(config))
    runtime = runtimes()["vllm"]
    values = [shape.token_layer_values(runtime, tp).high for tp in (1, 2, 4, 8)]

    assert values == [2 * 2 * 32, 2 * 32, 2 * 32, 2 * 32]


def test_a_window_bounds_the_lower_end_only() -> None:
    """A runtime may drop what a window does not see, and need not."""
    config = {**config_of("mistral"), "sliding_window": 21}
    shape = cache_shape(config, geometry_from_config(config))
    found = cache_bytes(shape, BOUNDS, runtimes()["vllm"], dtype_bits=16, tp=1)

    assert found.low * 112 == found.high * 32


def test_a_latent_cache_is_split_over_no_ranks() -> None:
    """576 channels, 640 with vLLM's padding; else 16 heads of 320, shared by ranks."""
    shape = cache_shape(LATENT, geometry_from_config(LATENT))
    latent = shape.token_layer_values(runtimes()["vllm"], 4)
    expanded = shape.token_layer_values(runtimes()["tensorrt-llm"], 4)

    assert (latent.low, latent.high) == (576, 640)
    assert (expanded.low, expanded.high) == (576, 4 * 320)
    assert shape.rotary_dim == 64


def test_layers_of_another_kind_are_said_to_be_unknown() -> None:
    """A layer that keeps a state instead of keys is not counted as if it did."""
    config = {**config_of("qwen3"), "layer_types": ["linear_attention"] * 3}
    shape = cache_shape(config, geometry_from_config(config))

    assert shape.unknown == ("layers of type linear_attention keep something else",)


@pytest.mark.parametrize("name", sorted(set(tiny_architectures.MODELS) - {"internlm2"}))
def test_windows_are_found_where_a_config_names_no_kinds(name: str) -> None:
    """Configs of older releases say a window and leave the layers to the class."""
    config = config_of(name)
    if config.pop("layer_types", None) is None:
        return
    walked = read_config(config)
    shape = cache_shape(config, geometry_from_config(config))
    windows = [walked.window_of(index) for index in range(walked.num_layers)]

    assert shape.num_sliding == sum(window is not None for window in windows)


@pytest.mark.parametrize(
    ("scaling", "rows"),
    [
        ({}, 4096),
        ({"rope_type": "llama3", "factor": 8.0}, 4096),
        ({"rope_type": "linear", "factor": 8.0}, 32768),
        ({"type": "dynamic", "factor": 2.0}, 8192),
        ({"type": "yarn", "factor": 4.0}, 16384),
        (
            {
                "type": "yarn",
                "factor": 40,
                "original_max_position_embeddings": 1024,
            },
            40960,
        ),
        ({"type": "longrope", "original_max_position_embeddings": 1024}, 5120),
    ],
)
def test_rotary_tables_have_the_rows_that_vllm_writes(
    scaling: dict[str, Any], rows: int
) -> None:
    """One row for each position that the scaling makes of the model's own."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 4096,
        "rope_scaling": scaling,
    }

    assert cache_shape(config, geometry_from_config(config)).rotary_rows == rows


def test_layers_of_two_kinds_are_filled_up_to_equal_groups() -> None:
    """Gemma 3 4B: 5 layers see all, 29 slide, and vLLM makes seven groups of five."""
    text = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "hidden_size": 2560,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 100,
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 10000.0,
    }
    config: dict[str, Any] = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
    }
    shape = cache_shape(config, geometry_from_config(config))

    assert (shape.num_full, shape.num_sliding) == (5, 29)
    assert shape.most_layers(runtimes()["vllm"]) == 35
    assert shape.most_layers(runtimes()["tensorrt-llm"]) == 34
    assert shape.rotary_rows == 9 * 131072
