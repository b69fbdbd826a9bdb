"""LLM Compressor as a provider: what it can do, and a recipe in its words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.quantizers.external.library import (
    ENTRY,
    Library,
    left_in_float,
    refusal,
)
from lmi_build.spi import ProviderInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec

NAME = "llmcompressor"
# Columns that GPTQ rounds before it carries their error to the rest.
_BLOCK_SIZE = 128
# Steps of AWQ's search for scales.
_GRID = 20


def native(spec: QuantSpec, model: ModelFacts) -> dict[str, JSONValue]:
    """The modifiers and their arguments."""
    group: dict[str, Any] = {"targets": ["Linear"], "weights": _weights(spec)}
    inputs = _inputs(spec)
    if inputs is not None:
        group["input_activations"] = inputs
    quantization: dict[str, Any] = {
        "config_groups": {"group_0": group},
        "ignore": list(left_in_float(spec, model)),
    }
    columns = {
        **quantization,
        "block_size": _BLOCK_SIZE,
        "dampening_frac": spec.damp_percent,
        "actorder": "static" if spec.desc_act else None,
    }
    modifiers: list[Any] = [["QuantizationModifier", quantization]]
    if spec.method == "gptq":
        modifiers = [["GPTQModifier", columns]]
    elif spec.method == "awq":
        rounding = modifiers[0]
        if spec.then_gptq:
            rounding = ["GPTQModifier", columns]
        search = ["AWQModifier", {"duo_scaling": True, "n_grid": _GRID}]
        modifiers = [search, rounding]
    elif spec.method == "smoothquant":
        alpha: Any = spec.smoothing_strength
        whole = isinstance(alpha, float) and alpha.is_integer()
        strength = int(alpha) if whole else alpha
        smooth = ["SmoothQuantModifier", {"smoothing_strength": strength}]
        modifiers = [smooth, *modifiers]
    return {"modifiers": modifiers, "oneshot": {"pipeline": "independent"}}


def _weights(spec: QuantSpec) -> dict[str, Any]:
    grouped = spec.group_size != -1
    strategy = "group" if grouped else "channel"
    if spec.method == "fp8":
        strategy = spec.granularity
    # The library has no search for clipping; its observer of least squared error
    # shrinks each group's range in the same way, by the weights alone.
    clips = spec.method == "awq" and spec.clip
    weights: dict[str, Any] = {
        "num_bits": spec.bits,
        "type": "float" if spec.method == "fp8" else "int",
        "symmetric": spec.sym,
        "strategy": strategy,
        "observer": "memoryless_mse" if clips else "memoryless_minmax",
    }
    if grouped:
        weights["group_size"] = spec.group_size
    return weights


def _inputs(spec: QuantSpec) -> dict[str, Any] | None:
    if spec.activations == "none":
        return None
    dynamic = spec.activations == "dynamic"
    return {
        "num_bits": 8,
        "type": "float" if spec.method == "fp8" else "int",
        "symmetric": True,
        "strategy": "token" if dynamic else "tensor",
        "dynamic": dynamic,
    }


def refuse(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    """What this library cannot do."""
    del model
    if spec.method == "smoothquant" and spec.smoothing_strength is None:
        yield refusal(
            NAME,
            "smoothing_strength",
            "does not search for the smoothing strength",
            "use `smoothing_strength: 0.5`, or the provider `builtin`",
        )
    if spec.method in {"rtn", "gptq", "awq"} and spec.bits not in {4, 8}:
        yield refusal(
            NAME, "bits", f"packs 4 or 8 bits, not {spec.bits}", "use `bits: 4`"
        )


def otherwise(spec: QuantSpec) -> tuple[str, ...]:
    """What it does instead of options it does not have."""
    said = []
    if spec.method == "gptq" and spec.true_sequential:
        said.append(
            "llmcompressor calibrates all layers of a block at once; `true_sequential`"
            " holds between blocks only"
        )
    if spec.method == "awq" and spec.clip and not spec.then_gptq:
        said.append(
            "llmcompressor clips groups for the least error of the weights, not of the"
            " layer's output"
        )
    return tuple(said)


PROVIDER = Library(
    info=ProviderInfo(
        name=NAME,
        summary="LLM Compressor: GPTQ, AWQ, SmoothQuant, INT8, FP8 and rounding",
        distributions=("llmcompressor", "torch"),
        modules=("llmcompressor",),
        salt=1,
        entry=ENTRY,
        methods=("rtn", "gptq", "awq", "smoothquant", "int8", "fp8"),
        threaded_methods=("gptq", "awq", "smoothquant"),
        toolchain=NAME,
    ),
    driver="lmi_build.quantizers.external.drive_llmcompressor",
    formats=("compressed-tensors",),
    native=native,
    refuse=refuse,
    otherwise=otherwise,
)
