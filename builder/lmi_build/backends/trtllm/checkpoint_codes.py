"""
Quantized linears of a checkpoint, cut for ranks and laid out by `weights`.

Codes are read as the format has them, each linear once for all ranks that share it, and
never turned back into floats, except where a GPU wants it so
(`coded_names.float_weights`).

Shape suffixes: I input channels, O output channels, G groups of I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.linear import (
    FusedLinear,
    Inexact,
    cut_inputs,
    cut_outputs,
)
from lmi_build.backends.trtllm.weights import (
    block_tensors,
    kv_cache_tensors,
    linear_shapes,
    linear_tensors,
    norm_tensors,
)
from lmi_build.checkpoint.formats.codec import decode, weight_of
from lmi_build.checkpoint.formats.layout import KV_CACHE_PARTS, PARTS
from lmi_build.errors import SourceInvalid, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from lmi_build.backends.trtllm.checkpoint_shards import Cut, RankLinear
    from lmi_build.backends.trtllm.checkpoint_writer import Shapes
    from lmi_build.backends.trtllm.linear import Part
    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.values.quant import QuantScheme

CACHE_SCALE = "kv_cache_scaling_factor"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointCodes:
    """
    The coded linears of one checkpoint; a `CodedLinears`.

    Args:
        reader: The checkpoint.
        scheme: Its format.
        algorithm: `quant_algo` of what is written.
        dtype: Of what is written.
        group_size: Inputs per scale; 0 where there are no groups.
        zero_points: Whether the groups have zero points.
        as_float: Weight-only linears are written as floats.
    """

    reader: CheckpointReader
    scheme: QuantScheme
    algorithm: str
    dtype: str
    group_size: int = 0
    zero_points: bool = False
    as_float: bool = False

    def shapes(self, linear: RankLinear) -> Shapes:
        """Dtype and shape of a linear's tensors by full name."""
        own = linear_shapes(
            linear.num_inputs,
            linear.num_outputs,
            self.algorithm,
            group_size=self.group_size,
            dtype=self.dtype,
            has_bias=False,
            role=linear.role,
            zero_points=self.zero_points,
            coded=not self.as_float,
        )
        piled = (linear.expert[1],) if linear.expert else ()
        named = {
            f"{linear.name}.{part}": (dtype, (*piled, *shape))
            for part, (dtype, shape) in own.items()
        }
        # The same whatever the scale is, so one is as good as the model's.
        for name, tensor in self._beside(linear, self._ones()).items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            named[name] = (dtype, tuple(tensor.shape))
        if self._has_cache_scale(linear):
            named[_cache_name(linear)] = ("float32", (1,))
        return named

    def tensors(self, linears: Sequence[RankLinear]) -> Iterator[Mapping[str, Tensor]]:
        """
        The tensors of each rank's share of the same parts.

        Raises:
            SourceInvalid: A linear does not fit its format or config.json.
            Unsupported: `trtllm.inexact`: the layout cannot say the numbers.
        """
        parts: dict[str, Part] = {}
        for cut in linears[0].cuts:
            if cut.module not in parts:
                parts[cut.module] = self._read(cut)
        scale = self._input_scale(linears[0])
        for linear in linears:
            try:
                yield self._made(linear, parts, scale)
            except Inexact as error:
                raise Unsupported(
                    f"`{linear.cuts[0].module}` cannot be `{self.algorithm}`: {error}",
                    code="trtllm.inexact",
                    hints=("quantize the model with another method or group_size",),
                ) from error

    def _made(
        self, linear: RankLinear, parts: Mapping[str, Part], scale: Tensor | None
    ) -> dict[str, Tensor]:
        pieces = tuple(
            cut_inputs(cut_outputs(parts[cut.module], first, last), *cut.inputs)
            for cut in linear.cuts
            for first, last in cut.outputs
        )
        fused = FusedLinear(
            parts=pieces,
            dtype=self.dtype,
            role=linear.role,
            input_scale=scale,
            zero_points=self.zero_points,
        )
        made = linear_tensors(fused, self.algorithm)
        tensors = {f"{linear.name}.{part}": tensor for part, tensor in made.items()}
        tensors |= self._beside(linear, scale)
        if self._has_cache_scale(linear):
            attention = linear.cuts[0].module.rpartition(".")[0]
            key, value = (
                self.reader.read(f"{attention}.{part}") for part in KV_CACHE_PARTS
            )
            tensors[_cache_name(linear)] = kv_cache_tensors(key, value)[CACHE_SCALE]
        return tensors

    def _read(self, cut: Cut) -> Part:
        names = [f"{cut.module}.{part}" for part in PARTS[self.scheme.packing]]
        found = {name: self.reader.read(name) for name in names if name in self.reader}
        codes = decode(found, cut.module, self.scheme)
        if tuple(codes.code_IO.shape[::-1]) != cut.full:
            raise SourceInvalid(
                f"`{cut.module}` has {list(codes.code_IO.shape[::-1])} codes, expected"
                f" {list(cut.full)}",
                code="trtllm.wrong-shape",
                hints=("correct config.json, or fetch the model again",),
            )
        return weight_of(codes) if self.as_float else codes

    def _input_scale(self, linear: RankLinear) -> Tensor | None:
        """Steps of the inputs' int8 numbers, of all linears that read them."""
        import torch

        if self.scheme.activation_scheme != "static":
            return None
        scales = [self.reader.read(f"{x}.input_scale") for x in linear.readers]
        return torch.cat([scale.reshape(-1).to(torch.float32) for scale in scales])

    def _beside(self, linear: RankLinear, scale: Tensor | None) -> dict[str, Tensor]:
        """What the layer gets beside the linear, for its inputs to become int8."""
        if not linear.scale_owner:
            return {}
        fused = FusedLinear(parts=(), dtype=self.dtype, input_scale=scale)
        make = block_tensors if linear.role == "row" else norm_tensors
        return {
            f"{linear.scale_owner}.{part}": tensor
            for part, tensor in make(fused, self.algorithm).items()
        }

    def _has_cache_scale(self, linear: RankLinear) -> bool:
        return self.scheme.kv_cache_dtype != "auto" and linear.role == "qkv"

    @staticmethod
    def _ones() -> Tensor:
        import torch

        return torch.ones(1)


def _cache_name(linear: RankLinear) -> str:
    return f"{linear.name.rpartition('.')[0]}.{CACHE_SCALE}"
