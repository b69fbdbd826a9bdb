"""The quantizer that ships with lmi-build: what it makes, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.architectures import find_architecture
from lmi_build.checkpoint.formats.layout import (
    checkpoint_plans,
    kv_cache_plans,
    packing_of,
)
from lmi_build.checkpoint.writer import encode_header, plan_shards
from lmi_build.decoders.decoder_config import read_config
from lmi_build.errors import Problem
from lmi_build.quantizers.builtin_checks import METHODS, check, linears_of
from lmi_build.quantizers.calibration import (
    calibration_params,
    calibration_settings,
)
from lmi_build.quantizers.memory import MemoryNeed, walk_need
from lmi_build.quantizers.options import Options
from lmi_build.spi import ProviderInfo
from lmi_build.text import join_words
from lmi_build.values.quant import QuantScheme
from lmi_build.values.recipe import CalibrationSpec
from lmi_build.values.stage import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.checkpoint.writer import TensorPlan
    from lmi_build.digest import JSONValue
    from lmi_build.spi import Params
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec, Recipe

# Scales of integer products; the other formats keep them in the type of the weights.
_FLOAT32_SCALES = frozenset({"int-quantized", "float-quantized"})
# Keys of `quantize` that change the bytes, by method; the rest say where and who.
_OPTIONS = {
    "rtn": ("bits", "group_size", "sym"),
    "int8": ("group_size", "activations", "kv_cache_dtype"),
    "fp8": ("granularity", "activations", "kv_cache_dtype"),
    "gptq": (
        "bits",
        "group_size",
        "sym",
        "desc_act",
        "true_sequential",
        "damp_percent",
        "kv_cache_dtype",
    ),
    "awq": ("bits", "group_size", "sym", "clip", "then_gptq", "kv_cache_dtype"),
    "smoothquant": ("smoothing_strength", "activations", "kv_cache_dtype"),
}
# What a method fixes, whatever the recipe's values for it.
_FIXED: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8, "sym": True},
    "fp8": {"bits": 8, "group_size": -1, "sym": True},
    "smoothquant": {"bits": 8, "group_size": -1, "sym": True},
}
_WIDE = frozenset({"float32", "float64"})


class BuiltinQuantizer:
    """Every method, streamed one decoder block at a time."""

    info = ProviderInfo(
        name="builtin",
        summary="GPTQ, AWQ, SmoothQuant, INT8, FP8 and rounding, block by block",
        distributions=("torch", "numpy", "tokenizers"),
        modules=("torch", "numpy", "tokenizers"),
        salt=9,
        entry="lmi_build.quantizers.builtin_worker:run",
        methods=METHODS,
        threaded_methods=("gptq", "awq", "smoothquant"),
    )

    def check(self, recipe: Recipe, model: ModelFacts) -> Iterator[Problem]:
        """Yield every reason why the model cannot be quantized as the recipe says."""
        spec = recipe.quantize
        if spec.method not in METHODS:
            yield Problem(
                code="quantize.method",
                message=f"provider `builtin` does not offer `{spec.method}`",
                path="quantize.method",
                hint=f"use {join_words(METHODS)}",
            )
            return
        yield from check(
            normal(spec),
            model,
            self.scheme(spec, model),
            calibrates=worker_options(spec).calibrates,
        )

    def scheme(self, spec: QuantSpec, model: ModelFacts) -> QuantScheme:
        """What the result will be."""
        spec = normal(spec)
        packing = packing_of(spec, bits=spec.bits)
        activations = spec.activations
        return QuantScheme(
            weight_bits=spec.bits,
            weight_dtype="float" if spec.method == "fp8" else "int",
            group_size=spec.group_size,
            sym=spec.sym,
            activation_bits=16 if activations == "none" else 8,
            packing=packing,
            activation_dtype=_activation_dtype(spec),
            activation_scheme=activations,
            granularity=spec.granularity if spec.method == "fp8" else "channel",
            kv_cache_dtype=spec.kv_cache_dtype,
            scale_dtype=_scale_dtype(packing, model),
        )

    def lower(self, spec: QuantSpec, model: ModelFacts) -> Params:
        """
        The worker's parameters.

        The calibration text enters by digest.
        """
        spec = normal(spec)
        options = {name: _exact(getattr(spec, name)) for name in _OPTIONS[spec.method]}
        params: dict[str, JSONValue] = {
            "method": spec.method,
            **options,
            "ignore": sorted(spec.ignore),
            "scheme": self.scheme(spec, model).to_json(),
        }
        if spec.lm_head:
            params["lm_head"] = True
        if spec.method == "awq" and spec.then_gptq:
            params["damp_percent"] = spec.damp_percent
        if worker_options(spec).calibrates:
            calibration = spec.calibration or CalibrationSpec()
            params |= {
                "compute_dtype": "float32" if model.dtype in _WIDE else "bfloat16",
                "calibration": calibration_params(calibration),
            }
        return params

    def job_settings(self, spec: QuantSpec) -> Params:
        """What the calibration files are called at their source."""
        if not worker_options(spec).calibrates:
            return {}
        return calibration_settings(spec.calibration or CalibrationSpec())

    def estimate(self, spec: QuantSpec, model: ModelFacts) -> Estimate:
        """Bytes on disk, exact for the weights; bytes in memory, by formula."""
        shapes = {fact.name: (fact.dtype, fact.shape) for fact in model.tensors}
        linears = linears_of(spec, model)
        plans = checkpoint_plans(
            shapes,
            linears,
            self.scheme(spec, model),
            extra=_kv_plans(spec, model),
        )
        weight_bytes = sum(
            len(encode_header(shard)) + sum(tensor.num_bytes for tensor in shard)
            for shard in plan_shards(plans)
        )
        kept = set(shapes) - {f"{x.name}.weight" for x in linears}
        made = sum(plan.num_bytes for plan in plans if plan.name not in kept)
        need = memory_need(spec, model)
        residual_bytes = need.activation_bytes // 2
        return Estimate(
            disk_bytes=weight_bytes,
            scratch_bytes=made + residual_bytes,
            ram_bytes=need.held_bytes,
        )


def _exact(value: JSONValue) -> JSONValue:
    """A whole number as one: keys have no way to write 1.0."""
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else value  # type: ignore[arg-type]


def normal(spec: QuantSpec) -> QuantSpec:
    """A spec with every value a method has no use for at what the method does."""
    fixed = dict(_FIXED.get(spec.method, {}))
    if "activations" not in _OPTIONS[spec.method]:
        fixed["activations"] = "none"
    elif spec.method in {"smoothquant", "fp8"} and spec.activations == "none":
        fixed["activations"] = "dynamic"
    return replace(spec, **fixed)


def worker_options(spec: QuantSpec) -> Options:
    """The recipe's options as the worker will read them."""
    spec = normal(spec)
    names = _OPTIONS[spec.method]
    return Options(method=spec.method, **{name: getattr(spec, name) for name in names})


def memory_need(spec: QuantSpec, model: ModelFacts) -> MemoryNeed:
    """What the worker will keep in memory."""
    calibration = spec.calibration or CalibrationSpec()
    options = worker_options(spec)
    parallel = options.calibrates and read_config(model.config).parallel
    return walk_need(
        linears_of(spec, model),
        options=options,
        parallel=parallel,
        num_tokens=calibration.num_samples * calibration.max_seq_len,
        seq_len=calibration.max_seq_len,
        hidden_size=model.geometry.hidden_size,
        item_bytes=4 if model.dtype in _WIDE else 2,
    )


def _kv_plans(spec: QuantSpec, model: ModelFacts) -> tuple[TensorPlan, ...]:
    """The scales of an 8-bit cache, beside every attention."""
    names = {fact.name for fact in model.tensors}
    architecture = find_architecture(model.config, names)
    if spec.kv_cache_dtype == "auto" or architecture is None:
        return ()
    blocks = range(model.geometry.num_layers)
    return kv_cache_plans(architecture.attention(index) for index in blocks)


def _activation_dtype(spec: QuantSpec) -> str:
    if spec.activations == "none":
        return "none"
    return "float" if spec.method == "fp8" else "int"


def _scale_dtype(packing: str, model: ModelFacts) -> str:
    """AutoGPTQ and AutoAWQ know float16; vLLM wants float32 beside 8-bit products."""
    if packing in _FLOAT32_SCALES:
        return "float32"
    if packing == "pack-quantized" and model.dtype in {"bfloat16", "float32"}:
        return model.dtype
    return "float16"


PROVIDER = BuiltinQuantizer()
