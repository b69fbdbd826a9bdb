"""What `config.json` says about a decoder, in every spelling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmi_build.catalog.architectures import Architecture, architectures
from lmi_build.decoders.decoder_config import check_config, read_config
from lmi_build.decoders.rope_config import Rope
from lmi_build.decoders.rotary import rotary_tables, rotate
from lmi_build.errors import Unsupported

BASE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 10 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 32,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 20},
    "yarn-whole": {**YARN, "truncate": False, "attention_factor": 1.1},
    "longrope": LONGROPE,
    "longrope-factor": {**LONGROPE, "factor": 3.0},
}


def named(name: str) -> Architecture:
    """One map."""
    return architectures()[name]


def llama(**extra: Any) -> dict[str, Any]:
    """A config of a llama."""
    return {"architectures": ["LlamaForCausalLM"], **BASE, **extra}


@pytest.mark.parametrize("num_tokens", [30, 100, 200])
@pytest.mark.parametrize("name", list(ROPES))
def test_rotary_tables_equal_transformers(name: str, num_tokens: int) -> None:
    """Every type has transformers' angles, within and beyond its positions."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    options = {"rope_theta": 5e3, **ROPES[name]}
    embedding = LlamaRotaryEmbedding(LlamaConfig(**BASE, rope_parameters=options))
    positions = torch.arange(num_tokens)[None]
    cos_1LR, sin_1LR = embedding(torch.zeros(1), positions)
    rope = read_config(
        llama(rope_parameters=ROPES[name] | {"rope_theta": 5e3})
    ).rope_of(0)
    assert rope is not None

    ours = rotary_tables(
        rope,
        num_tokens=num_tokens,
        pairs=False,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )

    # Angles of 200 radians have steps of 1.5e-5 in float32.
    assert torch.allclose(ours.cos_LR, cos_1LR[0], atol=5e-5)
    half = ours.sin_LR.shape[1] // 2
    assert torch.allclose(ours.sin_LR[:, half:], sin_1LR[0, :, half:], atol=5e-5)
    assert torch.equal(ours.sin_LR[:, :half], -ours.sin_LR[:, half:])


@pytest.mark.parametrize("pairs", [False, True])
def test_scores_depend_on_distance_alone(*, pairs: bool) -> None:
    """The product of a rotated query and key is a function of their distance."""
    rope = Rope(kind="default", theta=1e4, width=8, positions=64, original_positions=64)
    tables = rotary_tables(
        rope,
        num_tokens=20,
        pairs=pairs,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 12, generator=generator, dtype=torch.float64)

    turned = [rotate(x.expand(1, 1, 20, 12), tables)[0, 0] for x in (query, key)]

    score_LL = turned[0] @ turned[1].T
    for distance in range(5):
        same = score_LL.diagonal(-distance)
        assert torch.allclose(same, same[:1], atol=1e-6)
    assert not torch.allclose(score_LL[5, 4], score_LL[5, 0])
    assert torch.equal(turned[0][:, 8:], query[8:].expand(20, 4))


@pytest.mark.parametrize(
    ("name", "extra", "code", "word"),
    [
        (
            "LlamaForCausalLM",
            {"rope_parameters": {"rope_type": "axial"}},
            "quantize.rope",
            "axial",
        ),
        (
            "LlamaForCausalLM",
            {"rope_scaling": {"type": "linear"}},
            "quantize.rope",
            "factor",
        ),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "quantize.rope", "0.5"),
        ("LlamaForCausalLM", {"hidden_act": "relu6"}, "quantize.activation", "relu6"),
        (
            "OPTForCausalLM",
            {"do_layer_norm_before": False},
            "quantize.architecture",
            "do_layer_norm_before: false",
        ),
        (
            "OPTForCausalLM",
            {"word_embed_proj_dim": 32},
            "quantize.architecture",
            "32 channels",
        ),
        (
            "BloomForCausalLM",
            {"apply_residual_connection_post_layernorm": True},
            "quantize.architecture",
            "apply_residual",
        ),
        (
            "GemmaForCausalLM",
            {"use_bidirectional_attention": True},
            "quantize.architecture",
            "bidirectional",
        ),
        (
            "Gemma3ForCausalLM",
            {"layer_types": ["full_attention", "linear_attention"] * 2},
            "quantize.architecture",
            "linear_attention",
        ),
    ],
)
def test_what_is_not_known_is_refused(
    name: str, extra: dict[str, Any], code: str, word: str
) -> None:
    """A decoder we would compute wrongly is refused by name, with the way out."""
    config = {"architectures": [name], **BASE, **extra}

    (problem,) = check_config(named(name), config)

    assert (problem.code, word in problem.message) == (code, True)
    assert "int8" in problem.hint
    with pytest.raises(Unsupported, match=r"not known|lacks") as caught:
        read_config(config)
    assert caught.value.code == code


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(Unsupported) as caught:
        read_config({**BASE, "architectures": ["MambaForCausalLM"]})

    assert caught.value.code == "quantize.architecture"


@pytest.mark.parametrize("name", list(architectures()))
def test_every_map_can_be_read(name: str) -> None:
    """The usual spellings of sizes are enough for each of them."""
    config = {
        **BASE,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 64,
        "architectures": [name],
    }

    found = read_config(config)

    assert not list(check_config(named(name), config))
    assert len(found.layer_types) == found.num_layers == 4
    assert found.num_heads * found.head_dim >= found.hidden_size == 64


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (
            "LlamaForCausalLM",
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
            {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
        ),
        (
            "GPTNeoXForCausalLM",
            {"rotary_emb_base": 5e5, "rotary_pct": 0.5},
            {
                "rope_parameters": {
                    "rope_theta": 5e5,
                    "rope_type": "default",
                    "partial_rotary_factor": 0.5,
                }
            },
        ),
        (
            "Gemma3ForCausalLM",
            {
                "rope_theta": 5e5,
                "rope_local_base_freq": 5e3,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            {
                "rope_parameters": {
                    "full_attention": {
                        "rope_theta": 5e5,
                        "rope_type": "linear",
                        "factor": 8.0,
                    },
                    "sliding_attention": {"rope_theta": 5e3, "rope_type": "default"},
                }
            },
        ),
        (
            "Phi3ForCausalLM",
            {
                "original_max_position_embeddings": 32,
                "rope_scaling": {
                    "type": "su",
                    "short_factor": LONGROPE["short_factor"],
                    "long_factor": LONGROPE["long_factor"],
                },
            },
            {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE},
        ),
    ],
)
def test_configs_of_transformers_four_mean_the_same(
    name: str, old: dict[str, Any], new: dict[str, Any]
) -> None:
    """What stood beside `rope_scaling` means what `rope_parameters` means."""
    base = {**BASE, "architectures": [name]}

    before, after = (read_config({**base, **x}).ropes for x in (old, new))

    for kind, rope in before.items():
        other = after[kind]
        assert (rope.kind, rope.theta, rope.width) == (
            other.kind,
            other.theta,
            other.width,
        )
        assert rope.original_positions == other.original_positions
        numbers = [
            {k: v for k, v in x.options.items() if k != "type"} for x in (rope, other)
        ]
        assert numbers[0] == numbers[1]


def test_windows_follow_each_architecture() -> None:
    """Which blocks see only a window is the architecture's rule, or the config's."""

    def windows(name: str, **extra: Any) -> list[int | None]:
        found = read_config({**BASE, "architectures": [name], **extra})
        return [found.window_of(index) for index in range(4)]

    some = {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 2}
    full, all_four = [None] * 4, [7] * 4
    assert windows("LlamaForCausalLM", **some) == full
    assert windows("MistralForCausalLM", sliding_window=None) == full
    assert windows("MistralForCausalLM", sliding_window=7) == all_four
    assert windows("MixtralForCausalLM") == full
    assert windows("Qwen2ForCausalLM", sliding_window=7) == full
    assert windows("Qwen2ForCausalLM", **some) == [None, None, 7, 7]
    assert windows("Qwen2MoeForCausalLM", **some) == [7, None, None, None]
    assert windows("Qwen3MoeForCausalLM", **some) == all_four
    assert windows("Gemma2ForCausalLM", sliding_window=7) == [7, None, 7, None]
    assert windows("Gemma3ForCausalLM", sliding_window=7, sliding_window_pattern=3) == [
        7,
        7,
        None,
        7,
    ]
    kinds = ["full_attention"] * 3 + ["sliding_attention"]
    assert windows("Gemma3ForCausalLM", sliding_window=7, layer_types=kinds) == [
        None,
        None,
        None,
        7,
    ]
