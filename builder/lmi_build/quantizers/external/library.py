"""
A quantizer of another project as a provider: what all of them have in common.

A library is described by a `Library`: the formats it writes, what it cannot do and how
the recipe's words become its own. Schemes, sizes and most checks are those of the
built-in quantizer, because the result is held to the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.errors import Problem
from lmi_build.quantizers.builtin import PROVIDER as BUILTIN
from lmi_build.quantizers.builtin import normal, worker_options
from lmi_build.quantizers.builtin_checks import check as check_builtin
from lmi_build.quantizers.builtin_checks import linears_of
from lmi_build.quantizers.calibration import calibration_params, calibration_settings
from lmi_build.text import join_words
from lmi_build.units import MiB
from lmi_build.values.recipe import CalibrationSpec
from lmi_build.values.stage import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lmi_build.digest import JSONValue
    from lmi_build.spi import Params, ProviderInfo
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec, Recipe

ENTRY = "lmi_build.quantizers.external.worker:run"
# torch, transformers and the library, before a weight is read; 0.5 GB were measured.
_BASE_RAM_BYTES = 700 * MiB
# A library holds the whole model, and packed copies beside it.
_MODEL_COPIES = 2
# Inputs and outputs of a block, for every sample at once.
_ACTIVATION_COPIES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """
    One library, as `spi.Quantizer` has it.

    Args:
        info: What it is and needs.
        driver: Module that speaks to it, run in its own interpreter.
        formats: Of `quantize.format`, the first where the recipe says `auto`.
        native: Recipe to native options.
        refuse: Every reason of the library's own.
        otherwise: What it does instead where it has no such option, as sentences.
    """

    info: ProviderInfo
    driver: str
    formats: tuple[str, ...]
    native: Callable[[QuantSpec, ModelFacts], dict[str, JSONValue]]
    refuse: Callable[[QuantSpec, ModelFacts], Iterator[Problem]]
    otherwise: Callable[[QuantSpec], tuple[str, ...]] = lambda _spec: ()

    def check(self, recipe: Recipe, model: ModelFacts) -> Iterator[Problem]:
        """Yield every reason why the model cannot be quantized as the recipe says."""
        spec = recipe.quantize
        if spec.format not in {"auto", *self.formats}:
            yield self.problem(
                "format",
                f"writes {join_words(self.formats)}, not `{spec.format}`",
                f"use `format: {self.formats[0]}`, or convert afterwards:"
                " `lmi-build convert`",
            )
            return
        if spec.kv_cache_dtype != "auto":
            yield self.problem(
                "kv_cache_dtype",
                "makes no scales for the key-value cache here",
                "use `kv_cache_dtype: auto`, or the provider `builtin`",
            )
        if spec.lm_head:
            yield self.problem(
                "lm_head",
                "was not tried on heads",
                "use `lm_head: false`, or the provider `builtin`",
            )
        linears = linears_of(spec, model)
        if any(".experts." in f"{x.name}." for x in linears):
            yield self.problem(
                "provider",
                "was not tried on mixtures of experts",
                "use the provider `builtin`",
            )
        if any(x.transposed for x in linears):
            yield self.problem(
                "provider",
                f"was not tried on `{model.geometry.architecture}`, which stores its"
                " linears transposed",
                "use the provider `builtin`",
            )
        yield from check_builtin(
            normal(self._placed(spec)),
            model,
            self.scheme(spec, model),
            calibrates=False,
        )
        yield from self.refuse(normal(spec), model)

    def problem(self, field: str, message: str, hint: str) -> Problem:
        """A refusal that names the provider."""
        return refusal(self.info.name, field, message, hint)

    def _placed(self, spec: QuantSpec) -> QuantSpec:
        return replace(spec, format=self.formats[0]) if spec.format == "auto" else spec

    def scheme(self, spec: QuantSpec, model: ModelFacts) -> QuantScheme:
        """What the result will be."""
        return BUILTIN.scheme(self._placed(spec), model)

    def lower(self, spec: QuantSpec, model: ModelFacts) -> Params:
        """The worker's parameters; native names stand under `native`."""
        spec = normal(self._placed(spec))
        params: dict[str, JSONValue] = {
            "provider": self.info.name,
            "driver": self.driver,
            "method": spec.method,
            "native": self.native(spec, model),
            "ignore": sorted(spec.ignore),
            "scheme": self.scheme(spec, model).to_json(),
        }
        if spec.method == "gptq":
            params["damp_percent"] = spec.damp_percent
            params["true_sequential"] = spec.true_sequential
        if worker_options(spec).calibrates:
            calibration = spec.calibration or CalibrationSpec()
            params["calibration"] = calibration_params(calibration)
        return params

    def job_settings(self, spec: QuantSpec) -> Params:
        """What the worker says, and where the calibration text comes from."""
        settings: dict[str, JSONValue] = {
            "toolchain": self.info.toolchain,
            "notes": list(self.otherwise(normal(spec))),
        }
        if worker_options(spec).calibrates:
            settings |= calibration_settings(spec.calibration or CalibrationSpec())
        return settings

    def estimate(self, spec: QuantSpec, model: ModelFacts) -> Estimate:
        """Bytes on disk, exact; bytes in memory for a library that holds it all."""
        disk_bytes = BUILTIN.estimate(self._placed(spec), model).disk_bytes
        item = 4 if model.dtype in {"float32", "float64"} else 2
        model_bytes = item * sum(tensor.num_elements for tensor in model.tensors)
        calibration = spec.calibration or CalibrationSpec()
        tokens = calibration.num_samples * calibration.max_seq_len
        if not worker_options(spec).calibrates:
            tokens = 0
        width = model.geometry.hidden_size + model.geometry.intermediate_size
        return Estimate(
            disk_bytes=disk_bytes,
            scratch_bytes=2 * disk_bytes,
            ram_bytes=_BASE_RAM_BYTES
            + _MODEL_COPIES * model_bytes
            + _ACTIVATION_COPIES * item * tokens * width,
        )


def refusal(provider: str, field: str, message: str, hint: str) -> Problem:
    """What a provider cannot do, at one key of `quantize`."""
    return Problem(
        code="quantize.provider",
        message=f"provider `{provider}` {message}",
        path=f"quantize.{field}",
        hint=hint,
        unsupported=True,
    )


def left_in_float(spec: QuantSpec, model: ModelFacts) -> tuple[str, ...]:
    """Every linear that is not quantized, by full name; `lm_head` is one of them."""
    from lmi_build.checkpoint.formats.config import float_linears

    shapes = {fact.name: (fact.dtype, fact.shape) for fact in model.tensors}
    return float_linears(shapes, [x.name for x in linears_of(spec, model)])
