"""
Names, dtypes and shapes of a quantized linear on disk, for every packing.

Light: the planner checks and estimates with it, the codec writes by it, so that both
always agree.

Shapes: I input channels, O output channels, G groups of I.

Sources: AutoGPTQ 0.7.1 `qlinear_cuda_old.py`; AutoAWQ 0.2.9 `modules/linear/gemm.py`;
compressed-tensors 0.19 `compressors/pack_quantized` and `naive_quantized`; what vLLM's
`gptq`, `awq` and `compressed_tensors` layers register.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lmi_build.checkpoint.writer import TensorPlan
from lmi_build.text import join_words
from lmi_build.values.quant import COMPRESSED_TENSORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import QuantSpec

    Shapes = Mapping[str, tuple[str, tuple[int, ...]]]

WORD_BITS = 32
AUTOGPTQ = ("gptq", "gptq_v2")
FORMATS = ("gptq", "gptq_v2", "awq", "compressed-tensors")
BITS: Mapping[str, tuple[int, ...]] = {
    "gptq": (2, 3, 4, 8),
    "gptq_v2": (2, 3, 4, 8),
    "awq": (4,),
    "pack-quantized": (4, 8),
    "int-quantized": (8,),
    "float-quantized": (8,),
}
SCALE_DTYPES: Mapping[str, tuple[str, ...]] = {
    "gptq": ("float16",),
    "gptq_v2": ("float16",),
    "awq": ("float16",),
    **dict.fromkeys(COMPRESSED_TENSORS, ("float16", "bfloat16", "float32")),
}
# Every name a quantized linear may have, after its module's.
PARTS: Mapping[str, tuple[str, ...]] = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "gptq_v2": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "pack-quantized": (
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
    ),
    "int-quantized": (
        "weight",
        "weight_scale",
        "weight_zero_point",
        "weight_g_idx",
        "input_scale",
    ),
    "float-quantized": ("weight", "weight_scale", "input_scale"),
}
# The part that says, by being there, that a linear is quantized.
MARKS: Mapping[str, str] = {
    "gptq": "qweight",
    "gptq_v2": "qweight",
    "awq": "qweight",
    "pack-quantized": "weight_packed",
    "int-quantized": "weight_scale",
    "float-quantized": "weight_scale",
}
KV_CACHE_PARTS = ("k_scale", "v_scale")


class LinearShape(Protocol):
    """What a layout needs to know of a linear layer."""

    @property
    def name(self) -> str:
        """Module name, without `.weight`."""

    @property
    def num_outputs(self) -> int:
        """O."""

    @property
    def num_inputs(self) -> int:
        """I."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """
    Why a scheme cannot be written.

    Args:
        field: Key of `quantize` that is in the way.
        message: What is wrong, with numbers.
        hint: A value that works.
    """

    field: str
    message: str
    hint: str


def group_len(linear: LinearShape, group_size: int) -> int:
    """Input channels that share a scale."""
    return linear.num_inputs if group_size == -1 else group_size


def linear_plans(linear: LinearShape, scheme: QuantScheme) -> tuple[TensorPlan, ...]:
    """
    What one linear becomes on disk.

    Args:
        linear: The layer; whatever the source's orientation was.
        scheme: Any packing but `none`.

    Returns:
        Its tensors, in the format's own order; biases are not among them.
    """
    num_groups = linear.num_inputs // group_len(linear, scheme.group_size)
    if scheme.packing in COMPRESSED_TENSORS:
        parts = _compressed_parts(linear, scheme, num_groups)
    else:
        parts = _classic_parts(linear, scheme, num_groups)
    return tuple(
        TensorPlan(name=f"{linear.name}.{part}", dtype=dtype, shape=shape)
        for part, (dtype, shape) in parts.items()
    )


def words(num_codes: int, bits: int) -> int:
    """32-bit words that hold so many codes, the last one perhaps in part."""
    return -(-num_codes * bits // WORD_BITS)


def _classic_parts(
    linear: LinearShape, scheme: QuantScheme, num_groups: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    num_inputs, num_outputs = linear.num_inputs, linear.num_outputs
    output_words = words(num_outputs, scheme.weight_bits)
    weight_shape = (num_inputs, output_words)
    if scheme.packing in AUTOGPTQ:
        weight_shape = (words(num_inputs, scheme.weight_bits), num_outputs)
    parts: dict[str, tuple[str, tuple[int, ...]]] = {
        "qweight": ("int32", weight_shape),
        "qzeros": ("int32", (num_groups, output_words)),
        "scales": (scheme.scale_dtype, (num_groups, num_outputs)),
    }
    if scheme.packing in AUTOGPTQ:
        parts["g_idx"] = ("int32", (num_inputs,))
    return parts


def _compressed_parts(
    linear: LinearShape, scheme: QuantScheme, num_groups: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    num_inputs, num_outputs = linear.num_inputs, linear.num_outputs
    bits, packed = scheme.weight_bits, scheme.packing == "pack-quantized"
    per_tensor = scheme.granularity == "tensor" and scheme.group_size == -1
    parts: dict[str, tuple[str, tuple[int, ...]]] = {}
    if packed:
        parts["weight_packed"] = ("int32", (num_outputs, words(num_inputs, bits)))
    else:
        dtype = "float8_e4m3fn" if scheme.weight_dtype == "float" else "int8"
        parts["weight"] = (dtype, (num_outputs, num_inputs))
    scale_shape = (1,) if per_tensor else (num_outputs, num_groups)
    parts["weight_scale"] = (scheme.scale_dtype, scale_shape)
    if packed:
        parts["weight_shape"] = ("int64", (2,))
    if not scheme.sym:
        parts["weight_zero_point"] = (
            ("int32", (words(num_outputs, bits), num_groups))
            if packed
            else ("int8", (num_outputs, num_groups))
        )
    if scheme.act_order:
        parts["weight_g_idx"] = ("int32", (num_inputs,))
    if scheme.activation_scheme == "static":
        parts["input_scale"] = ("float32", (1,))
    return parts


def kv_cache_plans(attentions: Iterable[str]) -> tuple[TensorPlan, ...]:
    """
    The scales of an 8-bit cache of keys and values.

    Args:
        attentions: Module names such as `model.layers.0.self_attn`.

    Returns:
        `k_scale` and `v_scale` beside each, float32 [1].
    """
    return tuple(
        TensorPlan(name=f"{name}.{part}", dtype="float32", shape=(1,))
        for name in attentions
        for part in KV_CACHE_PARTS
    )


def checkpoint_plans(
    shapes: Shapes,
    linears: Iterable[LinearShape],
    scheme: QuantScheme,
    extra: Iterable[TensorPlan] = (),
) -> tuple[TensorPlan, ...]:
    """
    Every tensor of the result: quantized ones, those that pass through, extra ones.

    Args:
        shapes: Tensor name to dtype and shape, of the source.
        linears: What is quantized. One whose `NAME.weight` is not in `shapes` shares
            another tensor, which passes through.
        scheme: What they become.
        extra: Tensors without a source, such as `kv_cache_plans`. One that has a
            source's name replaces it: what is written under that name is this.
    """
    chosen = {f"{linear.name}.weight": linear for linear in linears}
    plans: dict[str, TensorPlan] = {}
    for name, (dtype, shape) in shapes.items():
        if name in chosen:
            plans |= {plan.name: plan for plan in linear_plans(chosen[name], scheme)}
        else:
            plans[name] = TensorPlan(name=name, dtype=dtype, shape=shape)
    for name, linear in chosen.items():
        if name not in shapes:
            plans |= {plan.name: plan for plan in linear_plans(linear, scheme)}
    plans |= {plan.name: plan for plan in extra}
    return tuple(plans.values())


def width_problem(linear: LinearShape, scheme: QuantScheme) -> str | None:
    """
    Why a linear cannot be packed, or None.

    Words must be full: readers size their buffers by `I * bits // 32`, so a format
    that could pad (compressed-tensors) is not readable by all where it does.
    """
    bits, packing = scheme.weight_bits, scheme.packing
    size = group_len(linear, scheme.group_size)
    if linear.num_inputs % size:
        return (
            f"group_size {size} does not divide the {linear.num_inputs} input channels"
            f" of `{linear.name}` ({linear.num_inputs} % {size} ="
            f" {linear.num_inputs % size})"
        )
    if packing in {"int-quantized", "float-quantized"}:
        return None
    per_word = WORD_BITS if WORD_BITS % bits else WORD_BITS // bits
    sides = [("input", linear.num_inputs), ("output", linear.num_outputs)]
    if packing == "awq":
        sides = sides[1:]
    elif packing == "pack-quantized" and scheme.sym:
        sides = sides[:1]
    for side, width in sides:
        if width % per_word:
            return (
                f"`{linear.name}` has {width} {side} channels; {bits}-bit codes are"
                f" packed {per_word} at a time"
            )
    return None


def packing_of(spec: QuantSpec, *, bits: int) -> str:
    """
    The packing that a recipe asks for.

    Args:
        spec: Its `quantize`, with a method other than `none`.
        bits: Of a weight, as the method has it.

    Returns:
        A packing; whether it can hold the scheme is for `refusals`. `auto` takes what
        most readers know: AutoAWQ for 4-bit `awq`, AutoGPTQ v1 for other weights,
        compressed-tensors where nothing else has a place for what is asked.
    """
    if spec.method == "fp8":
        return "float-quantized"
    if spec.method == "smoothquant" or spec.activations != "none":
        return "int-quantized"
    if spec.format == "compressed-tensors":
        return "pack-quantized"
    if spec.format != "auto":
        return spec.format
    if spec.kv_cache_dtype != "auto":
        return "pack-quantized"
    return "awq" if spec.method == "awq" and bits in BITS["awq"] else "gptq"


def refusals(scheme: QuantScheme, *, fmt: str = "auto") -> list[Refusal]:
    """
    Every reason why a scheme has no place in its packing.

    Args:
        scheme: What is to be written.
        fmt: `quantize.format`, refused where it names another family than the
            packing's.
    """
    packing, bits = scheme.packing, scheme.weight_bits
    found: list[Refusal] = []

    def refuse(field: str, message: str, hint: str) -> None:
        found.append(Refusal(field=field, message=message, hint=hint))

    family = "compressed-tensors" if packing in COMPRESSED_TENSORS else packing
    if fmt not in {"auto", family}:
        what = "fp8 weights" if packing == "float-quantized" else "8-bit activations"
        refuse(
            "format",
            f"format `{fmt}` has no place for {what}",
            "use `format: compressed-tensors`, or `auto`",
        )
    if bits not in BITS[packing]:
        able = join_words([str(number) for number in BITS[packing]])
        refuse("bits", f"format `{packing}` has no {bits}-bit weights", f"use {able}")
    if packing == "float-quantized" and scheme.group_size != -1:
        refuse(
            "group_size",
            f"fp8 weights have one scale a row, not groups of {scheme.group_size}",
            "use `group_size: -1`",
        )
    if packing == "int-quantized" and scheme.activation_bits < 16:  # noqa: PLR2004
        _refuse_activations(scheme, refuse)
    if scheme.scale_dtype not in SCALE_DTYPES[packing]:
        refuse(
            "format",
            f"format `{packing}` has no {scheme.scale_dtype} scales",
            "use `format: compressed-tensors`",
        )
    if scheme.act_order and packing not in AUTOGPTQ:
        # compressed-tensors had one until 0.18; 0.19 refuses to load it.
        refuse("format", f"format `{packing}` has no group index", "use `format: gptq`")
    if scheme.kv_cache_dtype != "auto" and packing not in COMPRESSED_TENSORS:
        refuse(
            "kv_cache_dtype",
            f"format `{packing}` has no place for scales of the key-value cache",
            "use `format: compressed-tensors`",
        )
    return found


class _Refuse(Protocol):
    def __call__(self, field: str, message: str, hint: str) -> None: ...


def _refuse_activations(scheme: QuantScheme, refuse: _Refuse) -> None:
    """8-bit products want one symmetric scale a row; no kernel takes anything else."""
    if scheme.group_size != -1:
        refuse(
            "group_size",
            "weights beside 8-bit activations have one scale a row, not groups of"
            f" {scheme.group_size}",
            "use `group_size: -1`",
        )
    if not scheme.sym:
        refuse(
            "sym",
            "weights beside 8-bit activations have no zero points",
            "use `sym: true`",
        )
