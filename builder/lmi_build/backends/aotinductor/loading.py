"""
A checkpoint as the decoder's tensors, bit for bit.

Every tensor of the checkpoint has a place, or the build stops: leaving one out would
make another model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmi_build.backends.aotinductor.blocks import Block, Norm
from lmi_build.backends.aotinductor.decoder import Decoder, num_places
from lmi_build.backends.aotinductor.linears import FloatLinear
from lmi_build.backends.aotinductor.repack import (
    coded_linear,
    grouped_linear,
    is_integer_product,
    round_head,
)
from lmi_build.catalog.architectures import find_architecture
from lmi_build.checkpoint.formats.codec import decode
from lmi_build.checkpoint.formats.config_reader import read_scheme
from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS, MARKS, PARTS
from lmi_build.checkpoint.reader import CheckpointReader
from lmi_build.decoders.decoder_config import read_config
from lmi_build.errors import SourceInvalid, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from lmi_build.backends.aotinductor.linears import Linear
    from lmi_build.catalog.architectures import Architecture
    from lmi_build.values.quant import QuantScheme

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
