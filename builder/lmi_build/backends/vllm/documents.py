"""
A `config.json` that the transformers of an image reads as it is meant.

Version 5 writes `dtype` and `rope_parameters`. Older ones ignore both: they would take
the base 10000 for every rotary embedding, and say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmi_build.errors import Problem

_NEW = 5


def is_older(transformers: str) -> bool:
    """Whether a version reads the names of transformers 4 alone."""
    return int(transformers.partition(".")[0]) < _NEW


def config_problem(config: Mapping[str, Any], *, transformers: str) -> Problem | None:
    """Why a configuration cannot be said in the older names, or None."""
    rope = config.get("rope_parameters")
    if not is_older(transformers) or not isinstance(rope, Mapping):
        return None
    if not any(isinstance(value, Mapping) for value in rope.values()):
        return None
    return Problem(
        code="vllm.config",
        message="the model's `rope_parameters` differ by kind of layer, which"
        f" transformers {transformers} of the image has no words for",
        path="compile.release",
        hint="write `release: djl-lmi-0.36.0`, whose transformers is 5.9.0",
        unsupported=True,
    )


def served_config(config: Mapping[str, Any], *, older: bool) -> dict[str, Any]:
    """
    The configuration with both names of what was renamed.

    Args:
        config: The checkpoint's.
        older: The image's transformers is of version 4.

    Returns:
        The same document where nothing needs another name.
    """
    found = dict(config)
    if not older:
        return found
    if "dtype" in found and "torch_dtype" not in found:
        found["torch_dtype"] = found["dtype"]
    rope = found.get("rope_parameters")
    if isinstance(rope, Mapping):
        rest = {name: value for name, value in rope.items() if name != "rope_theta"}
        if "rope_theta" in rope:
            found.setdefault("rope_theta", rope["rope_theta"])
        if rest.get("rope_type", "default") != "default":
            found.setdefault("rope_scaling", rest)
    return found
