"""
The numbers of a decoder, from `config.json` as transformers 4 or 5 writes it.

Pure and light: the planner checks here, before any download, what the worker computes
later. Whatever would change the computation and is not known is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmi_build.errors import Problem, Unsupported
from lmi_build.quantizers.targets import find_architecture
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from lmi_build.catalog.architectures import Architecture

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
ROPE_TYPES = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")
# Older names of LongRoPE; Phi-3 called it so before it had a paper.
_OLD_ROPE_TYPES = {"su": "longrope"}
# What each type cannot do without.
_ROPE_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
    "yarn": ("factor",),
}
FULL, SLIDING = "full_attention", "sliding_attention"
_LAYER_TYPES = (FULL, SLIDING)
NO_MAP = "use `method: int8` or `method: rtn`, which need no forward pass"
# How `config.json` usually spells what is wanted here.
_USUAL = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
    "original_positions": "original_max_position_embeddings",
    "rope_local_theta": "rope_local_base_freq",
    "score_scalar": "query_pre_attn_scalar",
    "score_multiplier": "attention_multiplier",
    "score_softcap": "attn_logit_softcapping",
    "scores_scaled": "scale_attn_weights",
    "scores_scaled_by_layer": "scale_attn_by_inverse_layer_idx",
    "num_experts_per_token": "num_experts_per_tok",
    "norm_expert_weights": "norm_topk_prob",
    "window_pattern": "sliding_window_pattern",
}
# TOML has no null.
_NONE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """
    A rotary embedding.

    Args:
        kind: One of `ROPE_TYPES`.
        theta: Base of the wavelengths.
        width: Channels of a head that turn; even.
        positions: Positions the model was made for.
        original_positions: Positions it was trained for before it was stretched.
        options: What else the type takes, such as `factor`.
    """

    kind: str
    theta: float
    width: int
    positions: int
    original_positions: int
    options: Mapping[str, Any] = field(default_factory=dict)


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
        known = [None if x == _NONE else x for x in allowed]
        if key in config and value not in known:
            yield _problem(
                "quantize.architecture",
                f"`{architecture.name}` with `{key}: {_say(value)}` is not known to"
                f" `builtin`, only with `{_say(known[0])}`",
            )
    values = _Values(architecture, config)
    width = config.get("word_embed_proj_dim")
    if width is not None and width != values.get("hidden_size"):
        yield _problem(
            "quantize.architecture",
            f"embeddings of {width} channels that are projected to"
            f" {values.get('hidden_size')} are not known to `builtin`",
        )
    activation = _activation(architecture, values)
    if activation not in ACTIVATIONS:
        yield _problem(
            "quantize.activation",
            f"activation `{activation}` of this model is not known to `builtin`, which"
            f" knows {join_words(ACTIVATIONS, last='and')}",
        )
    kinds = values.get("layer_types") or ()
    wrong = sorted(set(kinds) - set(_LAYER_TYPES)) if architecture.windows else ()
    for kind in wrong:
        yield _problem(
            "quantize.architecture",
            f"blocks of type `{kind}` are not known to `builtin`",
        )
    if architecture.rotary and not values.special("alibi"):
        for layer_type in _rope_types(architecture):
            options = _rope_options(architecture, values, layer_type)
            yield from _check_rope(architecture, options)


def check_tensors(
    architecture: Architecture, names: Container[str], index: int = 0
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
            yield _problem(
                "quantize.architecture",
                f"`{name}` holds all experts in one tensor; `builtin` reads one matrix"
                " per expert, as transformers' `save_pretrained` writes them",
            )


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
    values = _Values(architecture, config)
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
        ropes={} if alibi or not architecture.rotary else _ropes(architecture, values),
        alibi=architecture.model_type if alibi else "",
        parallel=bool(
            values.special("parallel") or values.special("new_decoder_architecture")
        ),
        embedding_scale=(
            math.sqrt(hidden)
            if values.special("scaled_embedding")
            else float(_or_one(values.special("embedding_multiplier")))
        ),
        residual_scale=float(_or_one(values.special("residual_multiplier"))),
        num_experts=int(values.special("num_experts") or 0),
        num_experts_per_token=int(values.special("num_experts_per_token") or 0),
        norm_expert_weights=bool(values.special("norm_expert_weights")),
    )


class _Values:
    """`config.json` by our names: as the map spells them, as usual, by default."""

    def __init__(self, architecture: Architecture, config: Mapping[str, Any]) -> None:
        self._architecture = architecture
        self._config = config

    def get(self, name: str, default: Any = None) -> Any:
        for key in (self._architecture.keys.get(name), _USUAL.get(name, name)):
            if key is not None and key in self._config:
                return self._config[key]
        value = self._architecture.defaults.get(name, default)
        return None if value == _NONE else value

    def special(self, name: str) -> Any:
        """What only some architectures look at: those that have a default for it."""
        return self.get(name) if name in self._architecture.defaults else None

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise KeyError(_USUAL.get(name, name))
        return value


def _problem(code: str, message: str) -> Problem:
    return Problem(
        code=code,
        message=message,
        path="quantize.method",
        hint=NO_MAP,
        unsupported=True,
    )


def _say(value: object) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))  # type: ignore[call-overload,no-any-return]


def _or_one(value: Any) -> Any:
    return 1.0 if value is None else value


def _activation(architecture: Architecture, values: _Values) -> str:
    name = str(values.get("activation") or "silu")
    return architecture.activations.get(name, name)


def _num_kv_heads(values: _Values, heads: int) -> int:
    """Falcon's first layout has one key head or as many as query heads."""
    if values.special("multi_query") is not None and not values.get(
        "new_decoder_architecture"
    ):
        return 1 if values.special("multi_query") else heads
    return int(values.get("num_kv_heads") or heads)


def _score_scale(values: _Values, head_dim: int) -> float:
    multiplier = values.special("score_multiplier")
    if multiplier is not None:
        return float(multiplier)
    if values.special("scores_scaled") is False:
        return 1.0
    return 1.0 / math.sqrt(float(values.special("score_scalar") or head_dim))


def _window(values: _Values) -> int | None:
    if values.get("use_sliding_window") is False:
        return None
    window = values.get("sliding_window")
    return None if window is None else int(window)


def _layer_types(architecture: Architecture, values: _Values) -> tuple[str, ...]:
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


def _rope_types(architecture: Architecture) -> tuple[str, ...]:
    """Layer types whose rotary embeddings may differ."""
    return _LAYER_TYPES if "rope_local_theta" in architecture.defaults else (FULL,)


def _rope_options(
    architecture: Architecture, values: _Values, layer_type: str
) -> dict[str, Any]:
    """
    The entries of `rope_parameters` for one layer type.

    transformers 4 kept the base and the partial factor beside `rope_scaling`, which
    for models with two kinds of blocks meant those that see everything.
    """
    given = values.get("rope_parameters")
    local = layer_type == SLIDING
    if isinstance(given, dict) and isinstance(given.get(layer_type), dict):
        options = dict(given[layer_type])
    elif isinstance(given, dict) and not any(x in given for x in _LAYER_TYPES):
        options = dict(given)
    else:
        options = {} if local else dict(values.get("rope_scaling") or {})
    kind = str(options.get("rope_type", options.get("type", "default")))
    options["rope_type"] = _OLD_ROPE_TYPES.get(kind, kind)
    theta = values.get("rope_local_theta" if local else "rope_theta", 10000.0)
    options.setdefault("rope_theta", theta)
    partial = _or_one(values.get("partial_rotary_factor"))
    options.setdefault("partial_rotary_factor", partial)
    original = values.get("original_positions")
    if original is not None:
        options["original_max_position_embeddings"] = original
    if architecture.model_type == "phi3" and options["rope_type"] == "yarn":
        options["rope_type"] = "longrope"
    return options


def _check_rope(
    architecture: Architecture, options: Mapping[str, Any]
) -> Iterator[Problem]:
    partial = options["partial_rotary_factor"]
    if partial != 1.0 and "partial_rotary_factor" not in architecture.defaults:
        yield _problem(
            "quantize.rope",
            f"`{architecture.name}` with `partial_rotary_factor: {partial}` is not"
            " known to `builtin`",
        )
    kind = options["rope_type"]
    if kind not in ROPE_TYPES:
        yield _problem(
            "quantize.rope",
            f"rotary embedding `{kind}` of this model is not known to `builtin`, which"
            f" knows {join_words(ROPE_TYPES, last='and')}",
        )
        return
    missing = [key for key in _ROPE_NEEDS.get(kind, ()) if options.get(key) is None]
    if missing:
        yield _problem(
            "quantize.rope",
            f"rotary embedding `{kind}` of this model lacks"
            f" {join_words(tuple(missing), last='and')} in `config.json`",
        )


def _ropes(architecture: Architecture, values: _Values) -> dict[str, Rope]:
    kinds = _rope_types(architecture)
    ropes = {kind: _rope(architecture, values, kind) for kind in kinds}
    return {kind: ropes.get(kind, ropes[FULL]) for kind in _LAYER_TYPES}


def _rope(architecture: Architecture, values: _Values, layer_type: str) -> Rope:
    options = _rope_options(architecture, values, layer_type)
    head_dim = int(
        values.get("head_dim") or values["hidden_size"] // values["num_heads"]
    )
    share = float(options.pop("partial_rotary_factor"))
    width = int(values.special("rotary_dim") or head_dim * share)
    positions = int(values["max_positions"])
    original = options.pop("original_max_position_embeddings", None)
    return Rope(
        kind=options.pop("rope_type"),
        theta=float(options.pop("rope_theta")),
        width=width,
        positions=positions,
        original_positions=int(original or positions),
        options=options,
    )
