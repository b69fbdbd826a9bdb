"""
The rotary embedding of a decoder, from `config.json` of transformers 4 or 5.

Source: transformers 5.23.0, modeling_rope_utils.py and the config classes named in
`catalog/architectures.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmi_build.decoders.config_values import (
    FULL,
    LAYER_TYPES,
    SLIDING,
    or_one,
    unknown,
)
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.catalog.architectures import Architecture
    from lmi_build.decoders.config_values import Values
    from lmi_build.errors import Problem

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


def check_ropes(architecture: Architecture, values: Values) -> Iterator[Problem]:
    """Every reason why the rotary embeddings cannot be computed."""
    for layer_type in _rope_types(architecture):
        options = _rope_options(architecture, values, layer_type)
        yield from _check_rope(architecture, options)


def _rope_types(architecture: Architecture) -> tuple[str, ...]:
    """Layer types whose rotary embeddings may differ."""
    return LAYER_TYPES if "rope_local_theta" in architecture.defaults else (FULL,)


def _rope_options(
    architecture: Architecture, values: Values, layer_type: str
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
    elif isinstance(given, dict) and not any(x in given for x in LAYER_TYPES):
        options = dict(given)
    else:
        options = {} if local else dict(values.get("rope_scaling") or {})
    kind = str(options.get("rope_type", options.get("type", "default")))
    options["rope_type"] = _OLD_ROPE_TYPES.get(kind, kind)
    theta = values.get("rope_local_theta" if local else "rope_theta", 10000.0)
    options.setdefault("rope_theta", theta)
    partial = or_one(values.get("partial_rotary_factor"))
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
        yield unknown(
            "quantize.rope",
            f"`{architecture.name}` with `partial_rotary_factor: {partial}` is not"
            " known to `builtin`",
        )
    kind = options["rope_type"]
    if kind not in ROPE_TYPES:
        yield unknown(
            "quantize.rope",
            f"rotary embedding `{kind}` of this model is not known to `builtin`, which"
            f" knows {join_words(ROPE_TYPES, last='and')}",
        )
        return
    missing = [key for key in _ROPE_NEEDS.get(kind, ()) if options.get(key) is None]
    if missing:
        yield unknown(
            "quantize.rope",
            f"rotary embedding `{kind}` of this model lacks"
            f" {join_words(tuple(missing), last='and')} in `config.json`",
        )


def read_ropes(architecture: Architecture, values: Values) -> dict[str, Rope]:
    """The rotary embedding of each layer type."""
    kinds = _rope_types(architecture)
    ropes = {kind: _rope(architecture, values, kind) for kind in kinds}
    return {kind: ropes.get(kind, ropes[FULL]) for kind in LAYER_TYPES}


def _rope(architecture: Architecture, values: Values, layer_type: str) -> Rope:
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
