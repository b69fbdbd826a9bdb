"""
Bytes of weights, on disk and on one rank, from shapes alone.

On disk every number is that of the checkpoint which the quantize stage writes, without
the headers of its files. On a rank matrices are split as runtimes with tensor
parallelism split them: columns of what widens, rows of what narrows, whole heads of
keys and values, which are held several times where ranks are more than heads.

Shapes: I input channels, O output channels, G groups of I.

Sources: Megatron-LM (arXiv:1909.08053) section 3; vLLM `layers/linear.py`
(`QKVParallelLinear`: `num_kv_head_replicas`); formats as in AutoGPTQ 0.7.1, AutoAWQ
0.2.9 and compressed-tensors 0.19.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.values.model import DTYPE_BITS
from lmi_build.values.quant import COMPRESSED_TENSORS

if TYPE_CHECKING:
    from lmi_build.catalog.runtimes import Runtime
    from lmi_build.values.quant import QuantScheme

COLUMNS = "columns"
ROWS = "rows"
KEYS = "keys"
FUSED = "fused"
VOCABULARY = "vocabulary"
WHOLE = "whole"
UNKNOWN = "unknown"
SPLITS = (COLUMNS, ROWS, KEYS, FUSED, VOCABULARY, WHOLE, UNKNOWN)
_WORD_BITS = 32
_WORD_BYTES = 4
_SHAPE_BYTES = 16
_FLOAT_BYTES = 4
_SCALE_BYTES = 2
_NARROW_BITS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadCounts:
    """
    Heads of one attention.

    Args:
        num_heads: Query heads.
        num_kv_heads: Key heads.
        head_dim: Channels of one.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def rank_kv_heads(self, tp: int) -> int:
        """Key heads that one of `tp` ranks holds; never less than one."""
        return max(1, -(-self.num_kv_heads // tp))

    def rank_fused_width(self, tp: int) -> int:
        """Outputs of a fused projection of queries, keys and values on one rank."""
        heads = -(-self.num_heads // tp) + 2 * self.rank_kv_heads(tp)
        return heads * self.head_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightClass:
    """
    Tensors that are alike in everything that decides their bytes.

    Args:
        part: `attention`, `mlp`, `router`, `embedding`, `positions`, `head`, `norm` or
            `other`.
        split: One of `SPLITS`.
        dtype: As the source has it, a name of `DTYPE_BITS`.
        shape: [O, I] of a matrix whatever its orientation on disk, else as it is.
        quantizable: A linear that the recipe quantizes.
        count: How many there are.
    """

    part: str
    split: str
    dtype: str
    shape: tuple[int, ...]
    quantizable: bool
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightTable:
    """
    All weights of a model.

    Args:
        classes: What it has; classes differ in at least one field.
        heads: Of every attention.
        tied: The head is the embedding.
        num_extra_scales: Scales of an 8-bit cache, float32, that quantizing adds.
        unknown: Why ranks may hold more than their share; empty where all is known.
    """

    classes: tuple[WeightClass, ...]
    heads: HeadCounts
    tied: bool
    num_extra_scales: int = 0
    unknown: tuple[str, ...] = ()


def linear_bytes(num_outputs: int, num_inputs: int, scheme: QuantScheme) -> int:
    """
    Bytes of one quantized linear, with everything a reader needs for it.

    Args:
        num_outputs: O.
        num_inputs: I.
        scheme: Any packing but `none`; groups may be cut short by a rank's border.

    Returns:
        Codes, scales, zero points, group index and the like; no bias.

    Source: as `checkpoint.formats.layout`, which names and shapes the same tensors.
    """
    bits = scheme.weight_bits
    size = num_inputs if scheme.group_size == -1 else scheme.group_size
    groups = -(-num_inputs // size)
    scale_bytes = DTYPE_BITS[scheme.scale_dtype] // 8
    if scheme.packing not in COMPRESSED_TENSORS:
        zeros = groups * _words(num_outputs, bits)
        if scheme.packing == "awq":
            codes = num_inputs * _words(num_outputs, bits)
        else:
            # AutoGPTQ packs along I, and names the group of every input channel.
            codes = _words(num_inputs, bits) * num_outputs + num_inputs
        return _WORD_BYTES * (codes + zeros) + groups * num_outputs * scale_bytes
    per_tensor = scheme.granularity == "tensor" and scheme.group_size == -1
    total = scale_bytes * (1 if per_tensor else num_outputs * groups)
    if scheme.packing == "pack-quantized":
        total += _WORD_BYTES * num_outputs * _words(num_inputs, bits) + _SHAPE_BYTES
    else:
        total += num_outputs * num_inputs
    if not scheme.sym:
        packed = scheme.packing == "pack-quantized"
        zero_words = _WORD_BYTES * _words(num_outputs, bits)
        total += groups * (zero_words if packed else num_outputs)
    if scheme.act_order:
        total += _WORD_BYTES * num_inputs
    if scheme.activation_scheme == "static":
        total += _FLOAT_BYTES
    return total


def lean_bytes(num_outputs: int, num_inputs: int, scheme: QuantScheme) -> int:
    """
    Bytes of what a kernel needs of a quantized linear, at least.

    A symmetric grid needs no zero points, plain groups no index, and a shape is in
    the program. Whether a runtime drops them hangs on its kernel.

    Source: vLLM `quantization/kernels/mixed_precision` (Machete and Marlin of GPTQ).
    """
    whole = linear_bytes(num_outputs, num_inputs, scheme)
    if scheme.packing == "pack-quantized":
        return whole - _SHAPE_BYTES
    if scheme.packing not in {"gptq", "gptq_v2"}:
        return whole
    size = num_inputs if scheme.group_size == -1 else scheme.group_size
    zeros = -(-num_inputs // size) * _words(num_outputs, scheme.weight_bits)
    dropped = num_inputs + (zeros if scheme.sym else 0)
    return whole - _WORD_BYTES * dropped


def _float_zeros_bytes(num_outputs: int, num_inputs: int, scheme: QuantScheme) -> int:
    """Codes, scales and zero points in the scales' dtype, as TensorRT-LLM has them."""
    size = num_inputs if scheme.group_size == -1 else scheme.group_size
    groups = -(-num_inputs // size)
    per_tensor = scheme.granularity == "tensor" and scheme.group_size == -1
    scales = 1 if per_tensor else groups * num_outputs
    numbers = scales * (1 if scheme.sym else 2)
    codes = -(-num_inputs * num_outputs * scheme.weight_bits // 8)
    return codes + numbers * _SCALE_BYTES


def _words(num_codes: int, bits: int) -> int:
    return -(-num_codes * bits // _WORD_BITS)


def checkpoint_bytes(table: WeightTable, scheme: QuantScheme) -> int:
    """
    Bytes of all tensors of the checkpoint that the quantize stage writes.

    Args:
        table: The source's weights.
        scheme: What becomes of those that are quantized; `none` leaves all alone.
    """
    extra = table.num_extra_scales * _FLOAT_BYTES
    return extra + sum(
        item.count * _tensor_bytes(item, item.shape, scheme, _bits(item))
        for item in table.classes
    )


def rank_bytes(
    item: WeightClass,
    table: WeightTable,
    scheme: QuantScheme,
    runtime: Runtime,
    tp: int,
    *,
    lean: bool = False,
) -> int:
    """
    Bytes of one class on one of `tp` ranks.

    Args:
        item: Of `table`.
        table: The model.
        scheme: What its linears become.
        runtime: Who holds it.
        tp: Ranks a layer is split over.
        lean: Only what every kernel needs.
    """
    bits = _bits(item)
    if runtime.narrows:
        bits = min(bits, _NARROW_BITS) if item.dtype.startswith("float") else bits
    shape = rank_shape(item, table.heads, runtime, tp)
    stored = _tensor_bytes(item, shape, scheme, bits)
    if item.quantizable and scheme.packing != "none":
        num_outputs, num_inputs = shape
        least = lean_bytes(num_outputs, num_inputs, scheme)
        if runtime.float_zeros:
            least = _float_zeros_bytes(num_outputs, num_inputs, scheme)
        stored = least if lean else max(stored, least)
    return item.count * stored


def rank_shape(
    item: WeightClass, heads: HeadCounts, runtime: Runtime, tp: int
) -> tuple[int, ...]:
    """Shape of one tensor of a class on one of `tp` ranks; the first axis is O."""
    first, *rest = item.shape or (1,)
    if item.split == VOCABULARY:
        if item.part == "embedding" and not runtime.splits_embedding:
            return item.shape
        multiple = runtime.vocabulary_multiple
        first = -(-first // multiple) * multiple
        return (-(-first // tp), *rest)
    if tp == 1 or item.split in {WHOLE, UNKNOWN}:
        return item.shape
    if item.split == ROWS:
        return (first, *(-(-size // tp) for size in rest[:1]), *rest[1:])
    if item.split == KEYS:
        return (_kv_share(first, heads, tp), *rest)
    if item.split == FUSED:
        whole = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
        if first == whole:
            return (heads.rank_fused_width(tp), *rest)
    return (-(-first // tp), *rest)


def _kv_share(first: int, heads: HeadCounts, tp: int) -> int:
    """Outputs of keys on a rank; whole heads of them."""
    return -(-first * heads.rank_kv_heads(tp) // heads.num_kv_heads)


def _bits(item: WeightClass) -> int:
    return DTYPE_BITS[item.dtype]


def _tensor_bytes(
    item: WeightClass, shape: tuple[int, ...], scheme: QuantScheme, bits: int
) -> int:
    if item.quantizable and scheme.packing != "none":
        num_outputs, num_inputs = shape
        return linear_bytes(num_outputs, num_inputs, scheme)
    count = 1
    for size in shape:
        count *= size
    return -(-count * bits // 8)
