"""
What the model builder reads of a configuration, where it reads it otherwise than meant.

Each was found by comparing engines with transformers on small random models.

Source: onnxruntime-genai 0.18.0, `models/builders/base.py` and `gemma.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.onnxruntime_models import onnxruntime_models

if TYPE_CHECKING:
    from lmi_build.catalog.onnxruntime_models import OnnxRuntimeModel

# `local_window_size` of `GroupQueryAttention`, as it is when nobody says anything.
NO_WINDOW = -1


def adapt_config(config: Any, max_seq_len: int) -> None:
    """
    Say what the builder would not find, and leave out what has no effect.

    A window is such where no sequence is longer; the kernel that has one wants a cache
    as long as it for every request, and rows of one length.

    Args:
        config: Of transformers; changed in place.
        max_seq_len: Positions that are ever used.
    """
    row = _row_of(config.architectures[0])
    if row is None:
        return
    if row.norm_epsilon:
        config.rms_norm_eps = getattr(config, row.norm_epsilon)
    window = getattr(config, "sliding_window", None)
    if window is not None and window >= max_seq_len:
        config.sliding_window = NO_WINDOW
    elif row.windowed and window is not None:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    rope = getattr(config, "rope_parameters", None)
    if row.local_rope and isinstance(rope, dict) and "full_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = dict(rope["full_attention"])
        config.rope_theta = rope["full_attention"]["rope_theta"]


def correct(instance: Any) -> None:
    """
    Replace what the builder rounded.

    Args:
        instance: The builder's model, before it made any node; changed in place.
    """
    row = _row_of(instance.model_type)
    if row is not None and row.scaled_embedding:
        instance.embed_attrs["scale"] = math.sqrt(instance.hidden_size)


def _row_of(name: str) -> OnnxRuntimeModel | None:
    """By architecture, which the builder replaces by the model's type for some."""
    rows = onnxruntime_models().values()
    return next((row for row in rows if name in {row.name, row.model_type}), None)
