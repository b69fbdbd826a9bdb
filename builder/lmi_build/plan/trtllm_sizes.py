"""
What a recipe and its release change of TensorRT-LLM's memory.

Blocks of the cache, packed tokens and the share of free memory that the cache takes are
those that the backend lowers to, not defaults of the day.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.bounds import Terms, lower_bounds
from lmi_build.backends.trtllm.models import trtllm_models
from lmi_build.backends.trtllm.target import find_target
from lmi_build.values.recipe import COMPILER

if TYPE_CHECKING:
    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe

ENGINE = "engine"
_FRACTION = "kv_cache_fraction"


def trtllm_runtime(recipe: Recipe, facts: ModelFacts, runtime: Runtime) -> Runtime:
    """
    The runtime that a recipe comes to.

    Args:
        recipe: Its target and release are known.
        facts: The model.
        runtime: TensorRT-LLM's row.

    Returns:
        The row with what the recipe and its release say; an option whose type is wrong
        is left alone, as the plan refuses it.
    """
    target = find_target(recipe.compile)
    fraction = recipe.serve.options.get(_FRACTION)
    if isinstance(fraction, float) and 0 < fraction < 1:
        runtime = replace(runtime, free_share=(0.0, round(1 - fraction, 6)))
    if target.kind != ENGINE or not target.release.flags:
        return runtime
    model = trtllm_models().get(facts.geometry.architecture)
    spec = recipe.quantize
    terms = Terms(
        flags=target.release.flags,
        options=recipe.compile.options,
        kv_cache_dtype=spec.kv_cache_dtype,
        weights_fp8=spec.method == "fp8" and spec.provider != COMPILER,
        encoder=model is not None and model.encoder,
    )
    lowered = lower_bounds(recipe.bounds, terms)
    return replace(
        runtime,
        block_tokens=max(1, terms.tokens_per_block),
        # Older releases have no usual number: there it is what the bounds come to.
        max_num_tokens=max(runtime.max_num_tokens, lowered.max_num_tokens),
    )
