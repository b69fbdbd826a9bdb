"""
A quantized checkpoint as the module tree that the model builder walks.

The builder's own reader dequantizes each layer in half precision and quantizes it
again; this one hands over the checkpoint's integers as they are, one decoder block
after another.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from onnxruntime_genai.models.loaders.base import (
    QuantizedDecoderLayer,
    QuantizedTensorModule,
    TensorModule,
)
from safetensors import SafetensorError, safe_open

from lmi_build.backends.onnxruntime_repack import RepackRefused, repack
from lmi_build.checkpoint.formats.codec import decode, weight_of
from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS, MARKS, PARTS
from lmi_build.errors import SourceInvalid, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from lmi_build.backends.onnxruntime_repack import BlockedWeight
    from lmi_build.values.quant import QuantScheme

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head."
LAYERS = "model.layers."
# Recomputed by the builder; some old checkpoints carry it.
_RECOMPUTED = ("rotary_emb.inv_freq",)
_LINEARS = {
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
}
_NORMS = {
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "self_attn.q_norm",
    "self_attn.k_norm",
}


class CheckpointTensors:
    """Tensors of a checkpoint by name, read when asked for; counts what was taken."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._left: set[str] = set()
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise SourceInvalid(
                "the checkpoint has no `.safetensors` file",
                code="compile.checkpoint-broken",
                hints=("run `lmi-build cache verify`, then build again",),
            )
        for path in paths:
            file = self._stack.enter_context(_open(path))
            self._files |= dict.fromkeys(file.keys(), file)
        self._left = set(self._files)
        _check_index(folder, self._left)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self, prefix: str) -> list[str]:
        """Names that begin so, sorted."""
        return sorted(name for name in self._files if name.startswith(prefix))

    def take(self, name: str) -> Tensor:
        """
        Read one tensor.

        Raises:
            SourceInvalid: `compile.tensor-missing` when there is none of that name.
        """
        if name not in self._files:
            raise SourceInvalid(
                f"the checkpoint has no tensor `{name}`",
                code="compile.tensor-missing",
                hints=("use a checkpoint that holds the whole model",),
            )
        self._left.discard(name)
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def leave(self, name: str) -> None:
        """Count a tensor as seen that has no place and needs none."""
        self._left.discard(name)

    def take_optional(self, name: str) -> Tensor | None:
        """Read one tensor, or None when there is none."""
        return self.take(name) if name in self._files else None

    @property
    def left(self) -> list[str]:
        """Names that nobody took, sorted."""
        return sorted(n for n in self._left if not n.endswith(_RECOMPUTED))

    def close(self) -> None:
        """Unmap the files."""
        self._stack.close()


class QuantizedWeights:
    """
    What the builder's `load_weights` returns for a quantized checkpoint.

    Args:
        tensors: The checkpoint.
        scheme: What its `quantization_config` says.
        num_layers: Decoder blocks.
        widest_block: Most channels of a block.
        input_scales: Takes the stored steps of activations, by module, as linears are
            read.
    """

    def __init__(
        self,
        tensors: CheckpointTensors,
        scheme: QuantScheme,
        *,
        num_layers: int,
        widest_block: int,
        input_scales: dict[str, float],
    ) -> None:
        self._tensors = tensors
        self._scheme = scheme
        self._num_layers = num_layers
        self._widest_block = widest_block
        self._input_scales = input_scales
        self.embedding = TensorModule(tensors.take(EMBEDDING))
        self.final_norm = self._norm("model.norm")
        self.lm_head = (
            self._linear("lm_head")
            if tensors.names(LM_HEAD)
            else TensorModule(self.embedding.weight)
        )

    @staticmethod
    def can_fuse_qkv(
        tensors: CheckpointTensors, scheme: QuantScheme, num_layers: int
    ) -> bool:
        """
        Whether q, k and v of every block may become one matrix.

        The builder decides it block by block and then confuses the blocks, so one
        block that cannot be fused forbids it for all.
        """
        if scheme.packing == "none":
            return True
        # What the three must share: their channels' order and their inputs' step.
        shared = [
            x for x in PARTS[scheme.packing] if x.endswith(("g_idx", "input_scale"))
        ]
        for number in range(num_layers):
            names = [f"{LAYERS}{number}.self_attn.{part}_proj" for part in "qkv"]
            packed = {f"{name}.{MARKS[scheme.packing]}" in tensors for name in names}
            if len(packed) > 1:
                return False
            for part in shared:
                found = [tensors.take_optional(f"{name}.{part}") for name in names]
                if any(not _same(found[0], row) for row in found):
                    return False
        return True

    def modules(self) -> Iterator[object]:
        """
        Modules in the order of the computation.

        Raises:
            Unsupported: `compile.unknown-tensor` at the end, when a tensor of the
                checkpoint has no place in the graph.
        """
        yield self.embedding
        for index in range(self._num_layers):
            yield self._layer(index)
        yield self.final_norm
        yield self.lm_head
        left = self._tensors.left
        if left:
            raise Unsupported(
                f"{len(left)} tensors have no place in the graph, such as `{left[0]}`",
                code="compile.unknown-tensor",
                hints=("build this model with `quantize: {method: none}`",),
            )

    def _layer(self, index: int) -> QuantizedDecoderLayer:
        layer = QuantizedDecoderLayer(index)
        prefix = f"{LAYERS}{index}."
        paths = {
            name[len(prefix) :].rpartition(".")[0]
            for name in self._tensors.names(prefix)
        }
        for path in sorted(paths & _LINEARS):
            _assign(layer, path, self._linear(prefix + path))
        for path in sorted(paths & _NORMS):
            _assign(layer, path, self._norm(prefix + path))
        for part in KV_CACHE_PARTS:
            # The engine's cache is float; the worker says so.
            self._tensors.leave(f"{prefix}self_attn.{part}")
        return layer

    def _norm(self, name: str) -> TensorModule:
        return TensorModule(
            self._tensors.take(f"{name}.weight"),
            self._tensors.take_optional(f"{name}.bias"),
        )

    def _linear(self, name: str) -> TensorModule | QuantizedTensorModule:
        bias = self._tensors.take_optional(f"{name}.bias")
        scheme = self._scheme
        if f"{name}.{MARKS[scheme.packing]}" not in self._tensors:
            return _float_module(self._tensors.take(f"{name}.weight"), bias)
        names = [f"{name}.{part}" for part in PARTS[scheme.packing]]
        found = {x: self._tensors.take(x) for x in names if x in self._tensors}
        codes = decode(found, name, scheme)
        if f"{name}.input_scale" in found:
            self._input_scales[name] = float(found[f"{name}.input_scale"])
        if scheme.weight_dtype == "float":
            # No kernel for CPUs multiplies fp8; as float32 every number is the same.
            return _float_module(weight_of(codes), bias)
        try:
            blocked = repack(
                codes,
                bits=scheme.weight_bits,
                group_size=scheme.group_size,
                widest=self._widest_block,
            )
        except RepackRefused as error:
            raise Unsupported(
                f"`{name}`: {error}",
                code="compile.weights-refused",
                hints=("quantize with `bits: 4` and `group_size: 32`, 64 or 128",),
            ) from error
        return _to_module(blocked, bias)


def _float_module(weight: Tensor, bias: Tensor | None) -> TensorModule:
    module = TensorModule(weight, bias)
    # Must not be packed with quantized neighbours.
    module.exclude_from_quantization = True
    return module


def _to_module(blocked: BlockedWeight, bias: Tensor | None) -> QuantizedTensorModule:
    module = QuantizedTensorModule()
    module.qweight = blocked.blocks
    module.scales = blocked.scales
    module.qzeros = blocked.zeros
    if module.qzeros is None:
        # The builder joins q, k and v and cannot join "none"; `drop_plain_zeros`
        # takes these out of the graph again.
        module.qzeros = _plain_zeros(blocked)
    module.g_idx = blocked.order
    module.bias = bias
    module.bits = blocked.bits
    module.group_size = blocked.block_size
    module.in_features = blocked.num_inputs
    module.out_features = blocked.num_outputs
    return module


def _plain_zeros(blocked: BlockedWeight) -> Tensor:
    num_blocks = blocked.blocks.shape[1]
    row_bytes = -(-num_blocks * blocked.bits // 8)
    middle = 0x88 if blocked.bits == 4 else 0x80  # noqa: PLR2004 - two nibbles of 8
    return torch.full((blocked.num_outputs * row_bytes,), middle, dtype=torch.uint8)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _assign(layer: object, path: str, module: object) -> None:
    parent, _, name = path.rpartition(".")
    setattr(getattr(layer, parent) if parent else layer, name, module)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise SourceInvalid(
            f"{path.name}: not a whole safetensors file: {error}",
            code="compile.checkpoint-broken",
            hints=("run `lmi-build cache verify`, then build again",),
        ) from error


def _check_index(folder: Path, found: set[str]) -> None:
    """Every tensor that the index promises must be there."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    missing = sorted(set(json.loads(index.read_bytes())["weight_map"]) - found)
    if missing:
        raise SourceInvalid(
            f"{len(missing)} tensors of {index.name} are in no file,"
            f" such as `{missing[0]}`",
            code="compile.tensor-missing",
            hints=("run `lmi-build cache verify`, then build again",),
        )
