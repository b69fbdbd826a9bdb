"""
A model that is quantized already: what it is, by its configuration and headers alone.

With `quantize.method: none` such a model goes to the backend as it stands. Nothing of
it is read for that but `config.json` and headers, so that what no backend could read,
and a configuration that belongs to other weights, are refused before a download.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.checkpoint.formats.headers import (
    linears_in,
    mark_of,
    misfits,
    parts_of,
    same_width,
    with_scale_dtype,
)
from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS
from lmi_build.checkpoint.formats.modelopt import METHOD, modelopt_scheme
from lmi_build.errors import Problem, SourceInvalid, Unsupported
from lmi_build.sources.consistency import float_shapes
from lmi_build.values.model import TensorFact
from lmi_build.values.quant import MODELOPT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.checkpoint.formats.headers import QuantizedLinear
    from lmi_build.checkpoint.formats.layout import Shapes
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

QUANTIZATION = "quantization_config"
# Set by whoever read it from `hf_quant_config.json`, as `config.json` says nothing.
FROM_FILE = "from_file"


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The `quantization_config` of a `config.json`, or None where it has none."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get(QUANTIZATION):
            entry = part[QUANTIZATION]
            return entry if isinstance(entry, dict) else {"quant_method": entry}
    return None


def source_scheme(facts: ModelFacts) -> QuantScheme | None:
    """
    What a model is that came quantized.

    Args:
        facts: The pinned model.

    Returns:
        The scheme, with the scales' dtype from the headers; `packing` is `modelopt`
        for weights that only TensorRT-LLM reads. None for a float model.

    Raises:
        Unsupported: `checkpoint.scheme`: its configuration says what is not read.
    """
    config = quantization_of(facts.config)
    if config is None:
        return None
    scheme = None
    if str(config.get("quant_method", "")).lower() == METHOD:
        scheme = _modelopt(config)
    return with_scale_dtype(scheme or read_scheme(config), _shapes(facts))


def _modelopt(config: Mapping[str, Any]) -> QuantScheme | None:
    try:
        scheme = modelopt_scheme(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise Unsupported(
            f"`{QUANTIZATION}` is not of the form that `{METHOD}` has: {error!r}",
            code="checkpoint.scheme",
            hints=("compare it with the tool's documentation",),
        ) from error
    if scheme is not None and config.get(FROM_FILE):
        # Readers of `config.json` alone would take the model for a float one.
        return replace(scheme, packing=MODELOPT)
    return scheme


def source_problems(recipe: Recipe, facts: ModelFacts) -> tuple[Problem, ...]:
    """
    Find why a model that came quantized cannot be used as the recipe says.

    Args:
        recipe: Its `quantize.method` must be `none`.
        facts: The pinned model; a float one has no problems here.

    Returns:
        Problems by dotted path. Where there is one, nothing else about the model's
        quantization means anything, so a planner need not ask the backend.
    """
    try:
        scheme = source_scheme(facts)
    except Unsupported as error:
        problem = Problem(
            code=error.code,
            message=f"`{recipe.model.source}`: {error.message}",
            path="model.source",
            hint=error.hints[0],
            unsupported=True,
        )
        return (problem,)
    if scheme is None:
        return ()
    if recipe.quantize.method != "none":
        return (_quantized_twice(recipe, scheme),)
    faults = list(_faults(facts, scheme))
    if not faults:
        return ()
    more = f" ({len(faults)} such differences)" if len(faults) > 1 else ""
    return (
        Problem(
            code="checkpoint.format",
            message=f"`{QUANTIZATION}` of `{recipe.model.source}` does not describe its"
            f" weights: {faults[0]}{more}",
            path="model.source",
            hint="take `config.json` and the weights from one revision",
        ),
    )


def _quantized_twice(recipe: Recipe, scheme: QuantScheme) -> Problem:
    return Problem(
        code="quantize.already-quantized",
        message=f"`{recipe.model.source}` is quantized already ({describe(scheme)});"
        f" `{recipe.quantize.method}` wants float weights",
        path="quantize.method",
        hint="set `method: none`, or name the float model; for another format of the"
        " same numbers, `lmi-build convert`",
    )


def describe(scheme: QuantScheme) -> str:
    """A scheme in a few words, such as `gptq, 4 bits, group_size 128`."""
    words = [scheme.packing, f"{scheme.weight_bits} bits"]
    if scheme.group_size != -1:
        words.append(f"group_size {scheme.group_size}")
    if scheme.act_order:
        words.append("activation order")
    if scheme.activation_scheme != "none":
        words.append(f"{scheme.activation_scheme} activations")
    if scheme.kv_cache_dtype != "auto":
        words.append(f"{scheme.kv_cache_dtype} cache")
    return ", ".join(words)


def _shapes(facts: ModelFacts) -> Shapes:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in facts.tensors}


def _faults(facts: ModelFacts, scheme: QuantScheme) -> Iterator[str]:
    """What headers say against the configuration, the first of each linear."""
    shapes = _shapes(facts)
    try:
        linears = linears_in(shapes, scheme)
    except ValueError as error:
        yield str(error)
        return
    if not linears:
        yield f"there is no tensor `*.{mark_of(scheme)}`, which `{scheme.packing}` has"
        return
    float_of = float_shapes(facts.config, facts.geometry, shapes)
    for linear in linears:
        fault = next(misfits(linear, scheme), None)
        fault = fault or _width_fault(linear, float_of.get(linear.name), scheme)
        if fault:
            yield fault


def _width_fault(
    linear: QuantizedLinear, wanted: tuple[int, ...] | None, scheme: QuantScheme
) -> str | None:
    """Codes of a linear that are more or fewer than the model's sizes say."""
    if wanted is None or len(wanted) != len("OI"):
        return None
    num_outputs, num_inputs = wanted
    if linear.num_outputs == num_outputs and same_width(linear, num_inputs, scheme):
        return None
    return (
        f"the codes of `{linear.name}` are {scheme.weight_bits} bits of a matrix"
        f" [{linear.num_outputs}, {linear.num_inputs}], the model's sizes say"
        f" [{num_outputs}, {num_inputs}]"
    )


def dequantized_facts(facts: ModelFacts, scheme: QuantScheme) -> ModelFacts:
    """
    The float model that a quantized one stands for, for whoever estimates by it.

    Args:
        facts: The pinned model.
        scheme: From `source_scheme`; the tensors fit it.

    Returns:
        The same facts with one float weight for each quantized linear and without
        `quantization_config`; `dtype` is float32, in which dequantized weights are
        exact. Files stay what they are.

    Raises:
        SourceInvalid: `checkpoint.format`: the tensors do not fit.
    """
    try:
        linears = linears_in(_shapes(facts), scheme)
    except ValueError as error:
        raise SourceInvalid(
            str(error),
            code="checkpoint.format",
            hints=("take `config.json` and the weights from one revision",),
        ) from error
    gone = {f"{x.name}.{part}" for x in linears for part in parts_of(scheme)}
    files = {tensor.name: tensor.file for tensor in facts.tensors}
    kept = [
        tensor
        for tensor in facts.tensors
        if tensor.name not in gone
        and tensor.name.rpartition(".")[2] not in KV_CACHE_PARTS
    ]
    made = [
        TensorFact(
            name=f"{linear.name}.weight",
            dtype="float32",
            shape=(linear.num_outputs, linear.num_inputs),
            file=files[f"{linear.name}.{mark_of(scheme)}"],
        )
        for linear in linears
    ]
    config = {k: v for k, v in facts.config.items() if k != QUANTIZATION}
    return replace(
        facts,
        config=config,
        tensors=tuple(sorted((*kept, *made), key=lambda tensor: tensor.name)),
        dtype="float32",
    )
