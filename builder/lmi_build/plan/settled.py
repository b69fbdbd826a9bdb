"""What a recipe leaves open, settled by its backend, its model or this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.sources.prequantized import source_scheme
from lmi_build.values.quant import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.plan.world import World
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec, Recipe


def settled(recipe: Recipe, world: World) -> Recipe:
    """The recipe with what it leaves open chosen for its backend."""
    backend = world.backend(recipe.compile.backend)
    spec = backend.quantization(recipe, world.facts[recipe.name])
    return replace(recipe, quantize=spec)


def known(versions: Mapping[str, str | None]) -> dict[str, str]:
    """Versions as they stand in a key: a package that is not here is `absent`."""
    return {name: version or "absent" for name, version in versions.items()}


def float_scheme(facts: ModelFacts) -> QuantScheme:
    """The scheme that a model comes with: float, or what it was quantized to."""
    scheme = source_scheme(facts)
    return scheme or QuantScheme(
        weight_bits=32 if facts.dtype == "float32" else 16,
        weight_dtype="float",
        group_size=-1,
        sym=True,
        activation_bits=16,
        packing="none",
    )


def compiler_scheme(spec: QuantSpec) -> QuantScheme:
    """Of weights that lie in float and are rounded where they are loaded."""
    return QuantScheme(
        weight_bits=spec.bits,
        weight_dtype="int",
        group_size=spec.group_size,
        sym=spec.sym,
        activation_bits=16,
        packing="none",
        scale_dtype="float32",
    )
