"""
The quantized linears of a model as one device holds them.

vLLM joins q, k and v, and gate and up, and asks its kernels about what is joined. What
ends a block's part is cut along its inputs, all else along its outputs.

Source: vLLM, `model_executor/layers/linear.py` (`QKVParallelLinear`,
`MergedColumnParallelLinear`, `RowParallelLinear`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.vllm.kernels import Sizes
from lmi_build.catalog.architectures import find_architecture
from lmi_build.checkpoint.formats.headers import linears_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.values.model import ModelFacts, ModelGeometry
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

_JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_KEYS_AND_VALUES = frozenset({"k_proj", "v_proj"})
# Last parts of names of linears whose inputs are cut.
_ROWS = frozenset(
    {
        "o_proj",
        "down_proj",
        "out_proj",
        "c_proj",
        "fc2",
        "fc_out",
        "dense",
        "dense_4h_to_h",
        "w2",
        "wo",
    }
)


def quantized_linears(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme
) -> dict[str, tuple[int, int]]:
    """
    Module name to outputs and inputs of every linear that is, or will be, quantized.

    Args:
        recipe: It says what is left out where the model is float.
        model: The pinned model.
        scheme: Of the checkpoint.

    Returns:
        Empty for a float checkpoint, and for an architecture that is not known.
    """
    if scheme.packing == "none":
        return {}
    shapes = {fact.name: (fact.dtype, fact.shape) for fact in model.tensors}
    if model.config.get("quantization_config"):
        return {
            linear.name: (linear.num_outputs, linear.num_inputs)
            for linear in linears_in(shapes, scheme)
        }
    return dict(_planned(recipe, model))


def _planned(
    recipe: Recipe, model: ModelFacts
) -> Iterator[tuple[str, tuple[int, int]]]:
    """What `quantize` will round, of an architecture of the catalogue."""
    from fnmatch import fnmatchcase

    found = find_architecture(model.config)
    shapes = {fact.name: fact.shape for fact in model.tensors}
    if found is None:
        return
    located = found.locate(frozenset(shapes))
    for layer in range(model.geometry.num_layers):
        for part in located.linears(frozenset(shapes), layer):
            name = f"{located.block(layer)}.{part}"
            shape = shapes.get(f"{name}.weight", ())
            left = any(fnmatchcase(name, text) for text in recipe.quantize.ignore)
            if len(shape) == len("OI") and not left:
                yield name, (shape[0], shape[1])


def device_sizes(
    linears: Mapping[str, tuple[int, int]], geometry: ModelGeometry, tp: int
) -> tuple[Sizes, ...]:
    """
    Sizes on one device, what is joined once.

    Args:
        linears: Outputs and inputs by module name.
        geometry: Of the model, for keys and values that every device copies.
        tp: Devices that a layer is split over.
    """
    found = []
    for name, (num_outputs, num_inputs) in linears.items():
        parent, _, last = name.rpartition(".")
        group = next((row for row in _JOINED if last in row), (last,))
        whole = [f"{parent}.{part}" for part in group if f"{parent}.{part}" in linears]
        if name != whole[0]:
            continue
        if last in _ROWS:
            sizes = Sizes(
                name=name, num_outputs=num_outputs, num_inputs=num_inputs // tp
            )
        else:
            outputs = sum(
                _outputs(part, linears[part][0], geometry, tp) for part in whole
            )
            sizes = Sizes(name=name, num_outputs=outputs, num_inputs=num_inputs)
        found.append(sizes)
    return tuple(found)


def _outputs(name: str, num_outputs: int, geometry: ModelGeometry, tp: int) -> int:
    """Outputs on one device; a head of keys or values is never cut."""
    share = num_outputs // tp
    if name.rpartition(".")[2] in _KEYS_AND_VALUES:
        return max(share, geometry.head_dim)
    return share
