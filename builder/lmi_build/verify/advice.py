"""
What to try when a gate is missed, read off the recipe and the layers' errors.

Pure. Steps that keep the artifact's size come before those that make it larger, and
each names the key and the value to write.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lmi_build.checkpoint.formats.config import LM_HEAD
from lmi_build.units import format_bytes
from lmi_build.values.recipe import CalibrationSpec, QuantSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmi_build.checkpoint.layers import Layer, Layers
    from lmi_build.digest import JSONValue
    from lmi_build.numerics.compare import Drift
    from lmi_build.values.quant import QuantScheme

# Sizes that every reader of group-wise weights takes, widest first.
_GROUP_SIZES = (128, 64, 32)
_FLOAT_BITS = 16
_INT8_BITS = 8
# A layer stands out when its error is this many times the median's.
_OUTLIER = 4.0
# Calibration tokens from which on more of them change little (docs/concepts).
_ENOUGH_TOKENS = 128 * 512
_NUM_WORST = 5
_MOST = 7
_CALIBRATED = frozenset({"gptq", "awq", "smoothquant"})
_BUILTIN = "builtin:"


def quant_spec(document: Mapping[str, Any]) -> QuantSpec:
    """The `quantize` section of a manifest's recipe."""
    known = {field.name for field in fields(QuantSpec)}
    values = {k: v for k, v in document.items() if k in known and v is not None}
    if isinstance(values.get("calibration"), dict):
        names = {field.name for field in fields(CalibrationSpec)}
        given = {k: v for k, v in values["calibration"].items() if k in names}
        values["calibration"] = CalibrationSpec(**given)
    if "ignore" in values:
        values["ignore"] = tuple(values["ignore"])
    return QuantSpec(**values)


def worst_lines(layers: Layers | None) -> tuple[str, ...]:
    """The layers that lose most, a line each, worst first."""
    if layers is None or not (worst := layers.worst(_NUM_WORST)):
        return ()
    rows = [
        f"  {layer.name}: {layer.error:.3g}, {layers.share(layer):.1%} of all"
        for layer in worst
    ]
    median = f", median {layers.median_error:.3g}"
    return (f"largest relative errors of {len(layers.layers)} layers{median}:", *rows)


def advice(
    spec: QuantSpec,
    scheme: QuantScheme,
    layers: Layers | None,
    drift: Drift,
    *,
    options: Mapping[str, JSONValue] | None = None,
    transposed: bool = False,
) -> tuple[str, ...]:
    """
    Say what to try, best first.

    Args:
        spec: What the recipe asked for.
        scheme: What the weights became.
        layers: Their errors; None when nothing was quantized.
        drift: What was measured.
        options: `compile.options` of the recipe.
        transposed: The model stores its weights with the inputs first (GPT-2).
    """
    found = [
        *_same_size(spec, scheme, layers),
        *_calibration(spec),
        *_outliers(spec, layers),
        *_larger(spec, scheme, layers, transposed=transposed),
        *_engine(scheme, drift, options or {}),
    ]
    return tuple(dict.fromkeys(found))[:_MOST]


def _same_size(
    spec: QuantSpec, scheme: QuantScheme, layers: Layers | None
) -> Iterator[str]:
    """Steps that cost time in the build and nothing in the artifact."""
    del layers
    method, bits = spec.method, scheme.weight_bits
    if method == "rtn" and bits < _INT8_BITS:
        yield (
            "`quantize.method: gptq` (or `awq`): the same size, and rounding is made up"
            " for on calibration text"
        )
    if method == "gptq" and not spec.desc_act:
        yield "`quantize.desc_act: true`: strong channels are rounded first"
    if method == "gptq" and not spec.true_sequential:
        yield "`quantize.true_sequential: true`: each layer repairs those before it"
    if method == "awq" and not spec.then_gptq:
        yield "`quantize.then_gptq: true`: the scaled weights are rounded by GPTQ"
    if method == "gptq" and bits < _INT8_BITS:
        yield "`quantize: {method: awq, then_gptq: true}`: scales first, then GPTQ"
    if method in {"int8", "rtn"} and spec.activations != "none":
        yield (
            "`quantize.method: smoothquant`: outliers of the activations move into the"
            " weights"
        )
    if method == "smoothquant" and spec.smoothing_strength is not None:
        yield (
            f"leave `quantize.smoothing_strength` out (now {spec.smoothing_strength:g})"
            ": it is searched for each layer"
        )
    if spec.activations == "static":
        yield "`quantize.activations: dynamic`: a scale for each token"
    if method == "fp8" and spec.granularity == "tensor":
        yield "`quantize.granularity: channel`: a scale for each output"


def _calibration(spec: QuantSpec) -> Iterator[str]:
    if spec.method not in _CALIBRATED:
        return
    text = spec.calibration or CalibrationSpec()
    if text.num_samples * text.max_seq_len < _ENOUGH_TOKENS:
        samples = -(-_ENOUGH_TOKENS // text.max_seq_len)
        yield (
            f"`quantize.calibration.num_samples: {samples}` (now {text.num_samples} of"
            f" {text.max_seq_len} tokens)"
        )
    if text.dataset.startswith(_BUILTIN):
        yield "`quantize.calibration.dataset: FILE`: text like what the model will see"


def _outliers(spec: QuantSpec, layers: Layers | None) -> Iterator[str]:
    """Keep the few layers in float that lose far more than the others."""
    if layers is None:
        return
    median = layers.median_error or 0.0
    bad = [
        layer
        for layer in layers.worst(_NUM_WORST)
        if layer.error and layer.error > _OUTLIER * median
    ]
    if not bad or len(layers.layers) <= len(bad):
        return
    times = (bad[0].error or 0.0) / median if median else 0.0
    how = f"up to {times:.0f} times the median error" if median else "all of the error"
    if any(layer.name == LM_HEAD for layer in bad):
        yield "`quantize.lm_head: false`: its error is among the largest"
        bad = [layer for layer in bad if layer.name != LM_HEAD]
    if not bad:
        return
    names = ", ".join([*spec.ignore, *(layer.name for layer in bad)])
    yield (
        f"`quantize.ignore: [{names}]`: {how}, for {format_bytes(_float_bytes(bad))}"
        " more"
    )


def _float_bytes(layers: Sequence[Layer]) -> int:
    """What it costs to keep layers in 16 bits."""
    return sum(
        _FLOAT_BITS // 8 * layer.num_weights - layer.num_bytes for layer in layers
    )


def _larger(
    spec: QuantSpec, scheme: QuantScheme, layers: Layers | None, *, transposed: bool
) -> Iterator[str]:
    """Steps that buy quality with bytes."""
    bits, size = scheme.weight_bits, scheme.group_size
    if scheme.packing == "none" or layers is None:
        return
    finer = None
    if scheme.weight_dtype == "int":
        finer = _finer_group(size, layers, inputs=0 if transposed else -1)
    if finer is not None and scheme.activation_bits >= _FLOAT_BITS:
        now = "a whole row" if size == -1 else str(size)
        cost = _FLOAT_BITS * (1 / finer - (0 if size == -1 else 1 / size))
        more = f"{cost:.2f} bits a weight more"
        yield f"`quantize.group_size: {finer}` (now {now}): {more}"
    if scheme.sym and bits < _INT8_BITS:
        yield "`quantize.sym: false`: a zero point for each group"
    if spec.method in {"gptq", "rtn"} and bits < _INT8_BITS:
        wider = next(n for n in (3, 4, 8) if n > bits)
        yield f"`quantize.bits: {wider}` (now {bits})"
    elif bits < _INT8_BITS:
        yield "`quantize.method: int8`: 8 bits a weight"
    if bits == _INT8_BITS and scheme.activation_bits < _FLOAT_BITS:
        yield "`quantize: {method: int8, activations: none}`: activations stay in float"


def _finer_group(size: int, layers: Layers, *, inputs: int) -> int | None:
    """The widest finer group that divides the inputs of every layer."""
    widths = {layer.shape[inputs] for layer in layers.layers}
    for smaller in _GROUP_SIZES:
        if (size == -1 or smaller < size) and not any(w % smaller for w in widths):
            return smaller
    return None


def _engine(
    scheme: QuantScheme, drift: Drift, options: Mapping[str, JSONValue]
) -> Iterator[str]:
    """What the engine rounds by itself."""
    if options.get("lm_head_dtype") == "int8":
        yield "`compile.options.lm_head_dtype: float32`: the head is not rounded"
    if scheme.packing == "none" and drift.mean_kl > 0:
        yield (
            "nothing was quantized: the drift is the engine's own; look at"
            " `compile.options`, and at `model.dtype`"
        )
