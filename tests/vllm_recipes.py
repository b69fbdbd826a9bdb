"""Recipes for vLLM as plain values, on models known by their sizes alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmi_build import registry
from lmi_build.backends.vllm.backend import PROVIDER, told
from lmi_build.backends.vllm.serving_keys import serving_properties
from lmi_build.backends.vllm.target import find_target
from lmi_build.plan.planner import float_scheme
from lmi_build.values.bounds import Bounds
from lmi_build.values.recipe import CompileSpec, QuantSpec, ServeSpec
from packed import sample_recipe
from planned_models import facts

if TYPE_CHECKING:
    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

BOUNDS = Bounds(max_input_len=2048, max_output_len=512, max_batch_size=16)
# What is quantized, by the names used in golden files.
METHODS: dict[str, QuantSpec] = {
    "none": QuantSpec(),
    "gptq": QuantSpec(method="gptq", bits=4, group_size=128),
    "awq": QuantSpec(method="awq", bits=4, group_size=128, sym=False),
    "int8": QuantSpec(method="int8", bits=8),
    "smoothquant": QuantSpec(method="smoothquant", bits=8, activations="dynamic"),
    "fp8": QuantSpec(method="fp8", bits=8, activations="static", granularity="tensor"),
    "fp8 cache": QuantSpec(
        method="fp8", bits=8, activations="dynamic", kv_cache_dtype="fp8"
    ),
}


def vllm_recipe(  # noqa: PLR0913 - the names say the rest
    method: str = "none",
    *,
    release: str | None = "djl-lmi-0.36.0",
    scheduler: str = "auto",
    target: str = "ml.g6.12xlarge",
    tp: int = 1,
    pp: int = 1,
    bounds: Bounds = BOUNDS,
    options: dict[str, Any] | None = None,
    serve: dict[str, Any] | None = None,
) -> Recipe:
    """A recipe, its quantization settled as the planner settles it."""
    recipe = sample_recipe(
        quantize=METHODS[method],
        bounds=bounds,
        compile=CompileSpec(
            backend="vllm",
            target=target,
            release=release,
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
            options=options or {},
        ),
        serve=ServeSpec(rolling_batch=scheduler, options=serve or {}),
    )
    return replace(recipe, quantize=PROVIDER.quantization(recipe, model()))


def model(folder: str = "llama-3.1-8b") -> ModelFacts:
    """One of the models of the shipped recipes, with two layers."""
    return facts(folder)


def scheme_of(recipe: Recipe, of: ModelFacts) -> QuantScheme:
    """What its weights will be."""
    spec = recipe.quantize
    if spec.method == "none":
        return float_scheme(of)
    return registry.quantizer(spec.provider).scheme(spec, of)


def problems(recipe: Recipe, of: ModelFacts | None = None) -> list[Problem]:
    """What the backend says of it."""
    of = of or model()
    return list(PROVIDER.check(recipe, of, scheme_of(recipe, of)))


def properties(recipe: Recipe, of: ModelFacts | None = None) -> dict[str, str]:
    """What its server is told."""
    of = of or model()
    target = find_target(recipe)
    return serving_properties(
        target.handler, told(recipe, of, scheme_of(recipe, of), target)
    )
