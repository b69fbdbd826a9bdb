"""
A checkpoint as the decoder's tensors, bit for bit.

Codes of every format become the same two layouts; nothing is rounded, and a format
that could not be said exactly is refused.

Shape suffixes: I input channels, O outputs, G groups of I, g channels of a group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmi_build.backends.aotinductor.decoder import Block, Decoder, Norm, num_places
from lmi_build.backends.aotinductor.linears import (
    CodedLinear,
    FloatLinear,
    GroupedLinear,
)
from lmi_build.catalog.architectures import find_architecture
from lmi_build.checkpoint.formats.codec import decode
from lmi_build.checkpoint.formats.config import read_scheme
from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS, MARKS, PARTS
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.decoders.decoder_config import read_config
from lmi_build.errors import SourceInvalid, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lmi_build.backends.aotinductor.linears import Linear
    from lmi_build.catalog.architectures import Architecture
    from lmi_build.checkpoint.formats.codec import Codes
    from lmi_build.values.quant import QuantScheme

_NIBBLE, _BYTE = 4, 8
# Unsigned 8-bit codes less this are the signed ones.
_MIDDLE = 128
# Channels that share a scale in a head that is rounded here.
HEAD_GROUP = 64
# Tables that are computed; some old checkpoints carry them.
_RECOMPUTED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias")


class Loader:
    """
    Reads a checkpoint tensor by tensor and counts what was taken.

    Args:
        folder: The checkpoint.
        config: Its `config.json`.

    Raises:
        SourceInvalid: A file is broken.
        Unsupported: Its architecture or format is not known.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._reader = CheckpointReader(folder)
        self._left = set(self._reader.tensors)
        found = find_architecture(config, self._reader)
        self.config = read_config(config, found)
        if found is None:
            raise AssertionError("`read_config` refuses what has no map")
        self.architecture: Architecture = found
        quantization = config.get("quantization_config")
        self.scheme: QuantScheme | None = (
            read_scheme(quantization) if quantization else None
        )

    def load(
        self,
        *,
        max_seq_len: int,
        dtype: torch.dtype,
        lm_head_dtype: str,
        on_block: Callable[[int], None] = lambda _: None,
    ) -> Decoder:
        """
        The whole decoder.

        Args:
            max_seq_len: Tokens that a slot can hold.
            dtype: Type of the activations.
            lm_head_dtype: `checkpoint`, or `int8` to round a float head.
            on_block: Told how many blocks were read.

        Raises:
            SourceInvalid: A tensor is missing or does not fit.
            Unsupported: A tensor has no place in the graph.
        """
        arch, config = self.architecture, self.config
        blocks = []
        for index in range(config.num_layers):
            blocks.append(self._block(index, num_places(max_seq_len)))
            on_block(index + 1)
        final = self._norm(arch.final_norm)
        if final is None:
            raise self._missing(f"{arch.final_norm}.weight")
        embedding_VD = self._take(f"{arch.embedding}.weight")
        decoder = Decoder(
            arch,
            config,
            max_seq_len=max_seq_len,
            dtype=dtype,
            embedding_VD=embedding_VD,
            position_PD=self._positions(max_seq_len),
            embedding_norm=self._norm(arch.embedding_norm),
            blocks=blocks,
            final_norm=final,
            head=self._head(embedding_VD, lm_head_dtype),
        )
        self._refuse_left()
        return decoder.eval()

    def close(self) -> None:
        """Close the files."""
        self._reader.__exit__(None, None, None)

    def _block(self, index: int, places: int) -> Block:
        arch = self.architecture
        prefix = f"{arch.block(index)}."
        names = dict.fromkeys(
            (*arch.projections, arch.output, *arch.widening, arch.down)
        )
        linears = {name: self._linear(prefix + name) for name in names}
        norms = {
            name: norm
            for name in _norm_names(arch)
            if (norm := self._block_norm(prefix, name)) is not None
        }
        attention = arch.attention(index)
        for part in KV_CACHE_PARTS:
            # The engine's cache is float; the worker says so.
            self._left.discard(f"{attention}.{part}")
        return Block(
            arch,
            self.config,
            index,
            linears=linears,
            norms=norms,
            num_places=places,
        )

    def _block_norm(self, prefix: str, name: str) -> Norm | None:
        heads = self._norm_heads(name)
        each = [f"{prefix}{name}.norms.{head}.weight" for head in heads]
        if each and each[0] in self._reader:
            weight = torch.stack([self._take(part) for part in each])
            return Norm(self.architecture.norm, weight, None, self.config.norm_eps)
        return self._norm(prefix + name)

    def _norm_heads(self, name: str) -> range:
        arch, config = self.architecture, self.config
        heads = {arch.query_norm: config.num_heads, arch.key_norm: config.num_kv_heads}
        return range(heads.get(name, 0))

    def _norm(self, name: str) -> Norm | None:
        if not name or f"{name}.weight" not in self._reader:
            return None
        weight, bias = self._take(f"{name}.weight"), self._take_optional(f"{name}.bias")
        return Norm(self.architecture.norm, weight, bias, self.config.norm_eps)

    def _positions(self, max_seq_len: int) -> Tensor | None:
        arch = self.architecture
        if not arch.positions:
            return None
        table = self._take(f"{arch.positions}.weight")[arch.position_offset :]
        if table.shape[0] < max_seq_len:
            raise SourceInvalid(
                f"the model has {table.shape[0]} positions, the bounds ask for"
                f" {max_seq_len}",
                code="compile.too-few-positions",
                hints=(f"lower `bounds` to {table.shape[0]} tokens together",),
            )
        return table[:max_seq_len].contiguous()

    def _head(self, embedding_VD: Tensor, lm_head_dtype: str) -> Linear | None:
        name = self.architecture.head
        quantized = self._is_quantized(name)
        own = quantized or f"{name}.weight" in self._reader
        bias = None if own else self._take_optional(f"{name}.bias")
        if not own and bias is None and lm_head_dtype == "checkpoint":
            return None
        head = self._linear(name) if own else FloatLinear(embedding_VD, bias)
        if lm_head_dtype == "int8" and isinstance(head, FloatLinear):
            return round_head(head)
        return head

    def _is_quantized(self, name: str) -> bool:
        if self.scheme is None or self.scheme.packing == "none":
            return False
        return f"{name}.{MARKS[self.scheme.packing]}" in self._reader

    def _linear(self, name: str) -> Linear:
        bias = self._take_optional(f"{name}.bias")
        if self.scheme is None or not self._is_quantized(name):
            weight = self._take(f"{name}.weight")
            is_head = name == self.architecture.head
            if self.architecture.transposed and not is_head:
                weight = weight.t().contiguous()
            return FloatLinear(weight, bias)
        parts = [f"{name}.{part}" for part in PARTS[self.scheme.packing]]
        found = {part: self._take(part) for part in parts if part in self._reader}
        codes = decode(found, name, self.scheme)
        if is_integer_product(self.scheme):
            return coded_linear(codes, found.get(f"{name}.input_scale"), bias)
        return grouped_linear(name, codes, self.scheme, bias)

    def _take(self, name: str) -> Tensor:
        if name not in self._reader:
            raise self._missing(name)
        self._left.discard(name)
        return self._reader.read(name)

    def _take_optional(self, name: str) -> Tensor | None:
        return self._take(name) if name in self._reader else None

    def _missing(self, name: str) -> SourceInvalid:
        return SourceInvalid(
            f"the checkpoint has no tensor `{name}`",
            code="compile.tensor-missing",
            hints=("use a checkpoint that holds the whole model",),
        )

    def _refuse_left(self) -> None:
        left = sorted(name for name in self._left if not name.endswith(_RECOMPUTED))
        if left:
            raise Unsupported(
                f"{len(left)} tensors have no place in the graph, such as `{left[0]}`",
                code="compile.unknown-tensor",
                hints=("build this model with `backend: onnxruntime`",),
            )


def is_integer_product(scheme: QuantScheme) -> bool:
    """Whether a checkpoint means products of 8-bit numbers."""
    return scheme.activation_dtype == "int" and scheme.activation_scheme != "none"


def coded_linear(
    codes: Codes, step: Tensor | None, bias_O: Tensor | None = None
) -> CodedLinear:
    """
    A linear of 8-bit products.

    Args:
        codes: Symmetric 8-bit ones, a scale per output.
        step: `input_scale`, where the checkpoint has one.
        bias_O: Of the linear.
    """
    code_OI = (codes.code_IO.t().contiguous() ^ _MIDDLE).view(torch.int8)
    scale_O = codes.scale_GO[0].contiguous().clone()
    step = None if step is None else step.float().reshape(1)
    return CodedLinear(code_OI, scale_O, step, bias_O)


def grouped_linear(
    name: str, codes: Codes, scheme: QuantScheme, bias_O: Tensor | None = None
) -> GroupedLinear:
    """
    A linear of codes with a scale per group.

    Args:
        name: Of the linear, for messages.
        codes: Out of any format.
        scheme: What the format is.
        bias_O: Of the linear.

    Raises:
        Unsupported: `compile.weights-refused`.
    """
    num_inputs, groups = codes.code_IO.shape[0], codes.scale_GO.shape[0]
    is_packed = scheme.weight_bits == _NIBBLE
    if num_inputs % groups or (is_packed and num_inputs // groups % 2):
        raise Unsupported(
            f"`{name}` has {num_inputs} input channels in {groups} groups, which are"
            " not equally long, or not even",
            code="compile.weights-refused",
            hints=("quantize with a `group_size` that divides every layer",),
        )
    order_I = _order(name, codes, num_inputs // groups)
    code_IO = codes.code_IO if order_I is None else codes.code_IO[order_I]
    code_OGg = code_IO.t().reshape(-1, groups, num_inputs // groups)
    zero_OG = codes.zero_GO.t()
    if is_packed:
        plain = bool((zero_OG == _MIDDLE >> _NIBBLE).all())
        low, high = code_OGg.chunk(2, -1)
        packed, zero = low | (high << _NIBBLE), zero_OG
    else:
        plain = bool((zero_OG == _MIDDLE).all())
        packed = (code_OGg.contiguous() ^ _MIDDLE).view(torch.int8)
        zero = (zero_OG.contiguous() ^ _MIDDLE).view(torch.int8)
    return GroupedLinear(
        packed.contiguous(),
        _narrowed(codes.scale_GO.t().contiguous()),
        None if plain else zero.contiguous(),
        order_I,
        bias_O,
    )


def _order(name: str, codes: Codes, size: int) -> Tensor | None:
    """Channels sorted by group, or None when they already are."""
    if codes.group_I is None:
        return None
    plain = torch.arange(codes.group_I.shape[0]) // size
    if torch.equal(codes.group_I.long(), plain):
        return None
    order_I = torch.argsort(codes.group_I, stable=True)
    if not torch.equal(codes.group_I[order_I].long(), plain):
        raise Unsupported(
            f"`{name}`: g_idx does not fill its groups with {size} channels each",
            code="compile.weights-refused",
            hints=("quantize with `desc_act: false`",),
        )
    return order_I


def _narrowed(scale_OG: Tensor) -> Tensor:
    """The same scales in the smallest type that holds each of them."""
    for dtype in (torch.float16, torch.bfloat16):
        narrow = scale_OG.to(dtype)
        if torch.equal(narrow.float(), scale_OG):
            return narrow
    return scale_OG


def round_head(head: FloatLinear) -> GroupedLinear:
    """A float head as 8-bit codes with a scale for each group of channels."""
    weight_OI = head.weight.float()
    outputs, inputs = weight_OI.shape
    size = HEAD_GROUP if inputs % HEAD_GROUP == 0 else inputs
    weight_OGg = weight_OI.view(outputs, -1, size)
    scale_OG = weight_OGg.abs().amax(-1).div(127.0).clamp_min(2.0**-40)
    code = (weight_OGg / scale_OG[..., None]).round().to(torch.int8)
    return GroupedLinear(code, scale_OG, None, None, head.bias)


def _norm_names(arch: Architecture) -> Iterator[str]:
    every = (
        *arch.attention_norm,
        arch.attention_post_norm,
        *arch.mlp_norm,
        arch.mlp_post_norm,
        arch.query_norm,
        arch.key_norm,
    )
    return (name for name in every if name)
