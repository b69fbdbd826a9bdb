"""What follows from a recipe and its model, once for checks, stages and serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.algorithms import (
    Algorithm,
    choose,
)
from lmi_build.backends.trtllm.bounds import (
    EngineBounds,
    lower_bounds,
)
from lmi_build.backends.trtllm.checkpoint_config import attention_window
from lmi_build.backends.trtllm.checkpoint_shards import Mapping2D
from lmi_build.backends.trtllm.lowering import terms_of
from lmi_build.backends.trtllm.models import trtllm_models
from lmi_build.backends.trtllm.target import (
    HF_QUANTIZED,
    Target,
    placement,
)
from lmi_build.catalog.architectures import architectures

if TYPE_CHECKING:
    from lmi_build.backends.trtllm.bounds import Terms
    from lmi_build.backends.trtllm.layout import Placement
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

_FLOAT16_SCALES = ("gptq", "awq")
_DTYPES = ("float16", "bfloat16", "float32")
# What the PyTorch backend packs into one pass unless it is told otherwise.
_USUAL_NUM_TOKENS = 8192


def algorithm_of(model: ModelFacts, scheme: QuantScheme, target: Target) -> Algorithm:
    """How the checkpoint is quantized, in TensorRT-LLM's words."""
    row = trtllm_models()[model.geometry.architecture]
    return choose(scheme, row, target.release)


def ranks_of(recipe: Recipe) -> Mapping2D:
    """How layers are split over ranks."""
    spec = recipe.compile
    return Mapping2D(tp=spec.tensor_parallel_size, pp=spec.pipeline_parallel_size)


def float_dtype(model: ModelFacts) -> str:
    """
    Of what is not quantized; TensorRT-LLM knows three.

    A model that came in AutoGPTQ's or AutoAWQ's format has float16 scales, which are
    held in the same type: it is computed in float16, whatever its other weights are.
    """
    packed = model.config.get("quantization_config")
    method = packed.get("quant_method") if isinstance(packed, Mapping) else None
    if method in _FLOAT16_SCALES:
        return "float16"
    return model.dtype if model.dtype in _DTYPES else "float16"


def engine_bounds(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> EngineBounds:
    """The numbers that the recipe promises, lowered for what is built."""
    if target.kind != HF_QUANTIZED:
        return lower_bounds(recipe.bounds, terms_for(recipe, model, scheme, target))
    bounds = recipe.bounds
    whole = bounds.max_batch_size * bounds.max_seq_len
    derived = max(bounds.max_input_len, min(_USUAL_NUM_TOKENS, whole))
    num_tokens = bounds.max_num_tokens or derived
    return EngineBounds(
        max_input_len=bounds.max_input_len,
        max_output_len=bounds.max_output_len,
        max_seq_len=bounds.max_seq_len,
        max_batch_size=bounds.max_batch_size,
        max_num_tokens=num_tokens,
        opt_num_tokens=None,
        max_beam_width=bounds.max_beam_width,
        paged_context_fmha=False,
        chunked_context=num_tokens < bounds.max_input_len,
    )


def terms_for(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Terms:
    """What decides how bounds are lowered."""
    row = trtllm_models()[model.geometry.architecture]
    algorithm = choose(scheme, row, target.release)
    return terms_of(target.release, row, algorithm, recipe.compile.options)


def placement_of(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Placement:
    """What decides where files lie."""
    bounds = engine_bounds(recipe, model, scheme, target)
    row = trtllm_models().get(model.geometry.architecture)
    return placement(
        target,
        recipe.compile,
        bounds,
        recipe.serve.options,
        encoder=row is not None and row.encoder,
        attention_window=_window(model, bounds),
    )


def _window(model: ModelFacts, bounds: EngineBounds) -> int:
    """
    The window of attention, where a request can be longer than it.

    Only where every block has the same: one number is all that a server takes.
    """
    known = architectures().get(model.geometry.architecture)
    if known is None or known.windows != "all":
        return 0
    window = attention_window(known, model.geometry, model.config)
    return window if window is not None and window < bounds.max_seq_len else 0
