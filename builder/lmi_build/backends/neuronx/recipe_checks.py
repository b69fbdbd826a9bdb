"""What no Neuron library does, whichever the recipe names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.problems import unsupported
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.values.recipe import QuantSpec, Recipe

# What a recipe can quantize and no Neuron container reads.
_UNREAD = ("rtn", "gptq", "awq", "smoothquant", "fp8")
_INSTEAD = "write `quantize: {method: int8}`, or `method: none`"


def recipe_problems(recipe: Recipe) -> Iterator[Problem]:
    """
    Every reason why no loader could be asked, by dotted recipe path.

    Args:
        recipe: Its target was found.
    """
    spec, serve = recipe.quantize, recipe.serve
    if spec.method in _UNREAD:
        yield unsupported(
            f"no Neuron library reads {spec.method} weights: Transformers NeuronX takes"
            " float weights and rounds them to 8 bits itself",
            "quantize.method",
            _INSTEAD,
        )
    elif spec.method == "int8":
        yield from _int8_problems(spec)
    if serve.rolling_batch != "auto":
        yield Problem(
            code="serve.rolling-batch",
            message=f"`rolling_batch` is `{serve.rolling_batch}`; which scheduler loads"
            " an artifact without compiling it is the release's to say",
            path="serve.rolling_batch",
            hint="write `rolling_batch: auto`, or remove the line",
        )


def _int8_problems(spec: QuantSpec) -> Iterator[Problem]:
    """The one form of 8 bits that is computed where weights are loaded."""
    asked = (
        ("provider", spec.provider != "compiler", "the toolchain rounds itself"),
        ("group_size", spec.group_size != -1, "each output channel has one scale"),
        ("activations", spec.activations != "none", "activations stay in float"),
        ("kv_cache_dtype", spec.kv_cache_dtype != "auto", "the cache stays in float"),
        ("format", spec.format != "auto", "weights lie in float"),
        ("ignore", spec.ignore != ("lm_head",), "which layers is the library's choice"),
    )
    for name, wrong, why in asked:
        if wrong:
            yield unsupported(
                f"Neuron's 8 bits are rounded while the model is loaded: {why}",
                f"quantize.{name}",
                f"remove `{name}`",
            )


def serve_option_problems(recipe: Recipe) -> Iterator[Problem]:
    """
    Whatever stands in `serve.options`: the loaders of decoders take none.

    Args:
        recipe: The recipe.
    """
    for name in recipe.serve.options:
        yield Problem(
            code="serve.unknown-option",
            message=f"a server of Neuron graphs has no option `{name}`: what it may be"
            " told follows from how the graphs were compiled",
            path=f"serve.options.{name}",
            hint="remove the line",
        )
