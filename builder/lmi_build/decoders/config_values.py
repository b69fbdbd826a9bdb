"""
What `config.json` says, by our own names for it.

Every architecture spells some sizes in its own way and leaves some out; the map knows
both. `Values` is the one place that looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.catalog.architectures import Architecture

NO_MAP = "use `method: int8` or `method: rtn`, which need no forward pass"
FULL, SLIDING = "full_attention", "sliding_attention"
LAYER_TYPES = (FULL, SLIDING)
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
    "logit_softcap": "final_logit_softcapping",
    "scores_scaled": "scale_attn_weights",
    "scores_scaled_by_layer": "scale_attn_by_inverse_layer_idx",
    "num_experts_per_token": "num_experts_per_tok",
    "norm_expert_weights": "norm_topk_prob",
    "window_pattern": "sliding_window_pattern",
}
# TOML has no null.
NONE = "none"


class Values:
    """`config.json` by our names: as the map spells them, as usual, by default."""

    def __init__(self, architecture: Architecture, config: Mapping[str, Any]) -> None:
        self._architecture = architecture
        self._config = config

    def get(self, name: str, default: Any = None) -> Any:
        """What `config.json` or the map says of something; None for nothing."""
        for key in (self._architecture.keys.get(name), _USUAL.get(name, name)):
            if key is not None and key in self._config:
                return self._config[key]
        value = self._architecture.defaults.get(name, default)
        return None if value == NONE else value

    def special(self, name: str) -> Any:
        """What only some architectures look at: those that have a default for it."""
        return self.get(name) if name in self._architecture.defaults else None

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise KeyError(_USUAL.get(name, name))
        return value


def unknown(code: str, message: str) -> Problem:
    """What `builtin` does not know, with the way around it."""
    return Problem(
        code=code,
        message=message,
        path="quantize.method",
        hint=NO_MAP,
        unsupported=True,
    )


def or_one(value: Any) -> Any:
    """One where nothing is said."""
    return 1.0 if value is None else value
