"""The quantizer that ships with lmi-build: what it can do, checked before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.catalog.architectures import architectures
from lmi_build.checkpoint.writer import encode_header, plan_shards
from lmi_build.errors import Problem
from lmi_build.quantizers.calibration import (
    PYTHON_DOCS,
    calibration_digest,
    calibration_path,
)
from lmi_build.quantizers.targets import (
    TRANSPOSED_MODEL_TYPES,
    WORD_BITS,
    Linear,
    candidates,
    checkpoint_plans,
    find_architecture,
    is_ignored,
    select,
)
from lmi_build.spi import ProviderInfo
from lmi_build.text import did_you_mean, join_words
from lmi_build.units import MiB
from lmi_build.values.quant import QuantScheme
from lmi_build.values.recipe import CalibrationSpec
from lmi_build.values.stage import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.spi import Params
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import QuantSpec, Recipe

METHODS = ("gptq", "int8")
GPTQ_BITS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128)
# Sweeps of coordinate descent after GPTQ's walk.
NUM_SWEEPS = 0
# torch, tokenizers and their libraries, before a weight is read.
BASE_RAM_BYTES = 320 * MiB
# H, its factor, the inverse and permuted copies of them alive at once, and float32
# copies of the weights of one group of linears.
_H_COPIES, _W_COPIES = 6, 7
_ACTIVATION_BYTES = 2


class BuiltinQuantizer:
    """GPTQ and int8 in the AutoGPTQ format, one decoder block in memory at a time."""

    info = ProviderInfo(
        name="builtin",
        summary="GPTQ and weight-only int8, streamed block by block on the CPU",
        distributions=("torch", "numpy", "tokenizers"),
        modules=("torch", "numpy", "tokenizers"),
        salt=1,
        entry="lmi_build.quantizers.builtin_worker:run",
        methods=METHODS,
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
        yield from _check_architecture(spec, model)
        yield from _check_numbers(spec)
        yield from _check_widths(spec, model)
        yield from _check_ignore(spec, model)
        if spec.method == "gptq":
            yield from _check_calibration(spec, model)

    def scheme(self, spec: QuantSpec, model: ModelFacts) -> QuantScheme:
        """What the result will be."""
        del model
        return QuantScheme(
            weight_bits=_bits(spec),
            weight_dtype="int",
            group_size=_group_size(spec),
            sym=_sym(spec),
            activation_bits=16,
            packing="gptq",
        )

    def lower(self, spec: QuantSpec, model: ModelFacts) -> Params:
        """
        The worker's parameters.

        The calibration text enters by digest; where it lies is a setting of the job
        (`job_settings`), because it changes no byte.
        """
        params: dict[str, object] = {
            "method": spec.method,
            "bits": _bits(spec),
            "group_size": _group_size(spec),
            "sym": _sym(spec),
            "ignore": sorted(spec.ignore),
            "packing": "gptq",
        }
        if spec.method == "gptq":
            calibration = spec.calibration or CalibrationSpec()
            wide = model.dtype in {"float32", "float64"}
            params |= {
                "desc_act": spec.desc_act,
                "damp_percent": spec.damp_percent,
                "num_sweeps": NUM_SWEEPS,
                "compute_dtype": "float32" if wide else "bfloat16",
                "calibration": {
                    "format": _calibration_format(calibration),
                    "digest": calibration_digest(calibration),
                    "num_samples": calibration.num_samples,
                    "max_seq_len": calibration.max_seq_len,
                    "seed": calibration.seed,
                    "chat_template": calibration.chat_template,
                },
            }
        return params  # type: ignore[return-value]

    def job_settings(self, spec: QuantSpec) -> Params:
        """Where the worker finds what `lower` names by digest."""
        if spec.method != "gptq":
            return {}
        path = calibration_path(spec.calibration or CalibrationSpec())
        return {} if path is None else {"calibration_path": str(path)}

    def estimate(self, spec: QuantSpec, model: ModelFacts) -> Estimate:
        """Bytes on disk, exact for the weights; bytes in memory, by formula."""
        shapes = _shapes(model)
        linears = _linears(spec, model)
        plans = checkpoint_plans(
            shapes, linears, bits=_bits(spec), group_size=_group_size(spec)
        )
        weight_bytes = sum(
            len(encode_header(shard)) + sum(tensor.num_bytes for tensor in shard)
            for shard in plan_shards(plans)
        )
        kept = set(shapes) - {f"{x.name}.weight" for x in linears}
        made = sum(plan.num_bytes for plan in plans if plan.name not in kept)
        activations = _activation_bytes(spec, model)
        return Estimate(
            disk_bytes=weight_bytes,
            scratch_bytes=made + activations // 2,
            ram_bytes=BASE_RAM_BYTES + activations + _work_bytes(spec, linears),
        )


def _bits(spec: QuantSpec) -> int:
    return 8 if spec.method == "int8" else spec.bits


def _group_size(spec: QuantSpec) -> int:
    return -1 if spec.method == "int8" else spec.group_size


def _sym(spec: QuantSpec) -> bool:
    return spec.method == "int8" or spec.sym


def _calibration_format(spec: CalibrationSpec) -> str:
    path = calibration_path(spec)
    return PYTHON_DOCS if path is None else path.suffix.lower()


def _shapes(model: ModelFacts) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {fact.name: (fact.dtype, fact.shape) for fact in model.tensors}


def _linears(spec: QuantSpec, model: ModelFacts) -> tuple[Linear, ...]:
    return select(
        _shapes(model),
        architecture=find_architecture(model.config),
        ignore=spec.ignore,
    )


def _activation_bytes(spec: QuantSpec, model: ModelFacts) -> int:
    """The residual stream and the widest input inside a block, for all samples."""
    if spec.method != "gptq":
        return 0
    calibration = spec.calibration or CalibrationSpec()
    geometry = model.geometry
    tokens = calibration.num_samples * calibration.max_seq_len
    inner = max(
        geometry.intermediate_size, geometry.num_attention_heads * geometry.head_dim
    )
    return tokens * (geometry.hidden_size + inner) * _ACTIVATION_BYTES


def _work_bytes(spec: QuantSpec, linears: tuple[Linear, ...]) -> int:
    """Float32 matrices alive while the widest linear is rounded."""
    copies = _H_COPIES if spec.method == "gptq" else 0
    return max(
        (
            4 * (copies * x.num_inputs**2 + _W_COPIES * x.num_inputs * x.num_outputs)
            for x in linears
        ),
        default=0,
    )


def _check_architecture(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    name = model.geometry.architecture
    if spec.method == "gptq" and find_architecture(model.config) is None:
        yield Problem(
            code="quantize.architecture",
            message=(
                f"architecture `{name}` is not known to `builtin`; known are "
                f"{join_words(tuple(architectures()), last='and')}"
            ),
            path="quantize.method",
            hint="use `method: int8`, which needs no map of the architecture",
            unsupported=True,
        )
    if model.geometry.model_type in TRANSPOSED_MODEL_TYPES:
        yield Problem(
            code="quantize.transposed",
            message=f"`{name}` stores its linears transposed, which is not offered",
            path="quantize.method",
            hint="use `method: none`",
            unsupported=True,
        )


def _check_numbers(spec: QuantSpec) -> Iterator[Problem]:
    if spec.method == "gptq" and spec.bits not in GPTQ_BITS:
        yield Problem(
            code="quantize.bits",
            message=f"gptq cannot pack {spec.bits} bits",
            path="quantize.bits",
            hint="use 4 (or 2, 3, 8)",
        )
    if spec.method == "gptq" and not 0 < spec.damp_percent < 1:
        yield Problem(
            code="quantize.damp-percent",
            message=f"damp_percent {spec.damp_percent:g} is not between 0 and 1",
            path="quantize.damp_percent",
            hint="use 0.01, or 0.05 for little calibration text",
        )
    if spec.group_size < -1 or spec.group_size == 0:
        yield Problem(
            code="quantize.group-size",
            message=f"group_size {spec.group_size} is not a number of channels",
            path="quantize.group_size",
            hint=f"use {join_words(tuple(map(str, (*GROUP_SIZES, -1))))}",
        )


def _check_widths(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    bits, size = _bits(spec), _group_size(spec)
    linears = _linears(spec, model)
    if not linears:
        yield Problem(
            code="quantize.nothing",
            message="no linear layer is left to quantize",
            path="quantize.ignore",
            hint="remove patterns from `ignore`, or use `method: none`",
        )
        return
    per_word = WORD_BITS if WORD_BITS % bits else WORD_BITS // bits
    for x in linears:
        for side, width in (("input", x.num_inputs), ("output", x.num_outputs)):
            if width % per_word:
                yield Problem(
                    code="quantize.width",
                    message=(
                        f"`{x.name}` has {width} {side} channels; {bits}-bit codes are "
                        f"packed {per_word} at a time"
                    ),
                    path="quantize.ignore",
                    hint=f"add `{x.name}` to `quantize.ignore`",
                )
                return
    if size < 1:
        return
    widths = {x.num_inputs: x.name for x in reversed(linears)}
    wrong = sorted(width for width in widths if width % size)
    if wrong:
        fits = [str(n) for n in GROUP_SIZES if not any(width % n for width in widths)]
        yield Problem(
            code="quantize.group-size",
            message=(
                f"group_size {size} does not divide the {wrong[0]} input channels of "
                f"`{widths[wrong[0]]}` ({wrong[0]} % {size} = {wrong[0] % size})"
            ),
            path="quantize.group_size",
            hint=f"use {join_words((*fits, '-1'))}",
        )


def _check_ignore(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    names = [fact.name.removesuffix(".weight") for fact in model.tensors]
    every = candidates(_shapes(model), architecture=find_architecture(model.config))
    parts = {part for linear in every for part in (linear.name, f"{linear.block}.*")}
    for pattern in spec.ignore:
        if pattern == "lm_head" or any(is_ignored(name, [pattern]) for name in names):
            continue
        tail = [name for name in names if name.endswith(f".{pattern}")]
        near = f"*.{pattern}" if tail else did_you_mean(pattern, parts)
        yield Problem(
            code="quantize.ignore",
            message=f"`ignore` pattern `{pattern}` matches no module of the model",
            path="quantize.ignore",
            hint=f"did you mean `{near}`?" if near else "remove it",
        )


def _check_calibration(spec: QuantSpec, model: ModelFacts) -> Iterator[Problem]:
    calibration = spec.calibration or CalibrationSpec()
    limit = model.geometry.max_position_embeddings
    window = model.config.get("sliding_window")
    if model.config.get("use_sliding_window", True) and isinstance(window, int):
        limit = min(limit, window)
    if calibration.max_seq_len > limit:
        yield Problem(
            code="quantize.calibration-length",
            message=(
                f"calibration sequences of {calibration.max_seq_len} tokens exceed the "
                f"model's {limit}"
            ),
            path="quantize.calibration.max_seq_len",
            hint=f"lower it to {limit}",
        )


PROVIDER = BuiltinQuantizer()
