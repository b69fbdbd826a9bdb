"""
The numbers of a decoder, from `config.json` as transformers 4 or 5 writes it.

Pure and light: the planner checks here, before any download, what the worker computes
later. Whatever would change the computation and is not known is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.architectures import find_architecture
from lmi_build.decoders.config_values import (
    FULL,
    LAYER_TYPES,
    NO_MAP,
    NONE,
    SLIDING,
    Values,
    or_one,
    unknown,
)
from lmi_build.decoders.rope_config import check_ropes, read_ropes
from lmi_build.errors import Unsupported
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.catalog.architectures import Architecture, Names
    from lmi_build.decoders.rope_config import Rope
    from lmi_build.errors import Problem

ACTIVATIONS = (
    "gelu",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu",
    "silu",
    "swish",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """
    The numbers of a decoder.

    Args:
        num_layers: Blocks.
        hidden_size: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Width of a head.
        norm_eps: Epsilon of the norms.
        activation: One of `ACTIVATIONS`.
        max_position_embeddings: Positions the model was made for; None without limit.
        score_scale: What attention scores are multiplied by.
        scores_scaled_by_layer: Scores are also divided by the block's number from 1.
        score_softcap: Scores are limited to this by a tanh.
        layer_types: `full_attention` or `sliding_attention`, for each block.
        window: Tokens a sliding block sees, itself included.
        ropes: Rotary embedding by layer type; empty without.
        alibi: `bloom`, `falcon` (rounds and scales the bias) or empty.
        parallel: Attention and the feed-forward part read the same residual.
        embedding_scale: What embeddings are multiplied by.
        residual_scale: What is added to the residual stream is multiplied by.
        num_experts: Experts of a sparse block.
        num_experts_per_token: How many of them see a token.
        norm_expert_weights: Their weights are made to sum to one.
        logit_scale: What the head's outputs are multiplied by.
        logit_softcap: They are limited to this by a tanh.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: str
    max_position_embeddings: int | None
    score_scale: float
    scores_scaled_by_layer: bool
    score_softcap: float | None
    layer_types: tuple[str, ...]
    window: int | None
    ropes: Mapping[str, Rope]
    alibi: str
    parallel: bool
    embedding_scale: float
    residual_scale: float
    num_experts: int
    num_experts_per_token: int
    norm_expert_weights: bool
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    def window_of(self, index: int) -> int | None:
        """Tokens that block `index` sees; None for all."""
        return self.window if self.layer_types[index] == SLIDING else None

    def rope_of(self, index: int) -> Rope | None:
        """The rotary embedding of block `index`."""
        return self.ropes.get(self.layer_types[index])

    def score_scale_of(self, index: int) -> float:
        """What block `index` multiplies its scores by."""
        layers = index + 1 if self.scores_scaled_by_layer else 1
        return self.score_scale / layers


def check_config(
    architecture: Architecture, config: Mapping[str, Any]
) -> Iterator[Problem]:
    """
    Every reason why a decoder cannot be computed, without its weights.

    Args:
        architecture: The map.
        config: `config.json`.

    Yields:
        Problems with the codes `quantize.architecture`, `quantize.activation` and
        `quantize.rope`.
    """
    for key, allowed in architecture.must.items():
        value = config.get(key)
        known = [None if x == NONE else x for x in allowed]
        if key in config and value not in known:
            yield unknown(
                "quantize.architecture",
                f"`{architecture.name}` with `{key}: {_say(value)}` is not known to"
                f" `builtin`, only with `{_say(known[0])}`",
            )
    values = Values(architecture, config)
    width = config.get("word_embed_proj_dim")
    if width is not None and width != values.get("hidden_size"):
        yield unknown(
            "quantize.architecture",
            f"embeddings of {width} channels that are projected to"
            f" {values.get('hidden_size')} are not known to `builtin`",
        )
    activation = _activation(architecture, values)
    if activation not in ACTIVATIONS:
        yield unknown(
            "quantize.activation",
            f"activation `{activation}` of this model is not known to `builtin`, which"
            f" knows {join_words(ACTIVATIONS, last='and')}",
        )
    kinds = values.get("layer_types") or ()
    wrong = sorted(set(kinds) - set(LAYER_TYPES)) if architecture.windows else ()
    for kind in wrong:
        yield unknown(
            "quantize.architecture",
            f"blocks of type `{kind}` are not known to `builtin`",
        )
    if architecture.rotary and not values.special("alibi"):
        yield from check_ropes(architecture, values)


def check_tensors(
    architecture: Architecture, names: Names, index: int = 0
) -> Iterator[Problem]:
    """
    Every reason why a decoder's tensors cannot be read, by their names alone.

    Args:
        architecture: The map, located in the file.
        names: Every tensor of the checkpoint.
        index: Which block to look at.

    Yields:
        Problems with the code `quantize.architecture`.
    """
    for part in architecture.fused_experts:
        name = f"{architecture.block(index)}.{part}"
        if name in names:
            yield unknown(
                "quantize.architecture",
                f"`{name}` holds all experts in one tensor; `builtin` reads one matrix"
                " per expert, as transformers' `save_pretrained` writes them",
            )


def _embedding_scale(values: Values, hidden_size: int) -> float:
    """What the rows of the embedding are multiplied with."""
    if values.special("scaled_embedding"):
        return math.sqrt(hidden_size)
    return float(or_one(values.special("embedding_multiplier")))


def read_config(
    config: Mapping[str, Any], architecture: Architecture | None = None
) -> DecoderConfig:
    """
    Take a decoder's numbers from `config.json`.

    Args:
        config: `config.json`.
        architecture: The map; by default the one that `config` names.

    Raises:
        Unsupported: `quantize.architecture`, `quantize.activation` or `quantize.rope`:
            the first of `check_config`.
        KeyError: A size that has no default is missing; `sources` checks them first.
    """
    architecture = architecture or find_architecture(config)
    if architecture is None:
        raise Unsupported(
            f"architecture {config.get('architectures')} is not known to `builtin`",
            code="quantize.architecture",
            hints=(NO_MAP,),
        )
    for problem in check_config(architecture, config):
        raise Unsupported(problem.message, code=problem.code, hints=(problem.hint,))
    values = Values(architecture, config)
    hidden, heads = int(values["hidden_size"]), int(values["num_heads"])
    head_dim = int(values.get("head_dim") or hidden // heads)
    positions = values.get("max_positions")
    alibi = bool(values.special("alibi"))
    return DecoderConfig(
        num_layers=int(values["num_layers"]),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=_num_kv_heads(values, heads),
        head_dim=head_dim,
        norm_eps=float(values.get("norm_eps", 1e-6)),
        activation=_activation(architecture, values),
        max_position_embeddings=None if positions is None else int(positions),
        score_scale=_score_scale(values, head_dim),
        scores_scaled_by_layer=bool(values.special("scores_scaled_by_layer")),
        score_softcap=values.special("score_softcap"),
        layer_types=_layer_types(architecture, values),
        window=_window(values),
        ropes={}
        if alibi or not architecture.rotary
        else read_ropes(architecture, values),
        alibi=architecture.model_type if alibi else "",
        parallel=bool(
            values.special("parallel") or values.special("new_decoder_architecture")
        ),
        embedding_scale=_embedding_scale(values, hidden),
        residual_scale=float(or_one(values.special("residual_multiplier"))),
        num_experts=int(values.special("num_experts") or 0),
        num_experts_per_token=int(values.special("num_experts_per_token") or 0),
        norm_expert_weights=bool(values.special("norm_expert_weights")),
        logit_scale=1.0 / float(or_one(values.special("logits_scaling"))),
        logit_softcap=values.special("logit_softcap"),
    )


def _say(value: object) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))  # type: ignore[call-overload,no-any-return]


def _activation(architecture: Architecture, values: Values) -> str:
    name = str(values.get("activation") or "silu")
    return architecture.activations.get(name, name)


def _num_kv_heads(values: Values, heads: int) -> int:
    """Falcon's first layout has one key head or as many as query heads."""
    if values.special("multi_query") is not None and not values.get(
        "new_decoder_architecture"
    ):
        return 1 if values.special("multi_query") else heads
    return int(values.get("num_kv_heads") or heads)


def _score_scale(values: Values, head_dim: int) -> float:
    multiplier = values.special("score_multiplier")
    if multiplier is not None:
        return float(multiplier)
    if values.special("scores_scaled") is False:
        return 1.0
    return 1.0 / math.sqrt(float(values.special("score_scalar") or head_dim))


def _window(values: Values) -> int | None:
    if values.get("use_sliding_window") is False:
        return None
    window = values.get("sliding_window")
    return None if window is None else int(window)


def _layer_types(architecture: Architecture, values: Values) -> tuple[str, ...]:
    count = int(values["num_layers"])
    if not architecture.windows or _window(values) is None:
        named = values.get("layer_types") if architecture.windows else None
        return tuple(named) if named else (FULL,) * count
    if architecture.windows == "all":
        return (SLIDING,) * count
    named = values.get("layer_types")
    if named:
        return tuple(named)
    first = int(values.get("max_window_layers", 0))
    every = int(values.get("window_pattern", 1))
    slides = {
        "from": [index >= first for index in range(count)],
        "even-below": [index % 2 == 0 and index < first for index in range(count)],
        "pattern": [(index + 1) % every != 0 for index in range(count)],
    }[architecture.windows]
    return tuple(SLIDING if slide else FULL for slide in slides)
