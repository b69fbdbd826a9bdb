"""
One block of a decoder as plain PyTorch, with caches that it writes in place.

Every architecture is the same code with other data: names, norms, rotations and
windows come from `catalog/architectures.toml` and `config.json`. Nothing of
transformers is used.

Shape suffixes: B slots, L tokens of a slot, R = B * L rows, D residual width, N query
heads, K key and value heads, n = N / K, H head width, C places of a cache.

Source: transformers 5.23.0, the files named in `catalog/architectures.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lmi_build.backends.aotinductor import kernels
from lmi_build.backends.aotinductor.linears import computed
from lmi_build.decoders.activation_functions import ACTIVATIONS
from lmi_build.decoders.attention import alibi_bias
from lmi_build.decoders.rotary import RotaryTables, rotate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.aotinductor.linears import Linear
    from lmi_build.catalog.architectures import Architecture
    from lmi_build.decoders.decoder_config import DecoderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """
    Where the rows of one pass belong.

    Args:
        slot_R: Slot of each row, counted in the caches of this graph.
        place_R: Place of each row.
        seen: For each layer type, which places a row sees: bool [B, 1, 1, L, C];
            empty where a kernel finds them.
        turns: For each layer type, its tables at the rows' places: cosines and sines
            [R, 1, width].
        shape: B and L.
        limit: Rows at this place are padding.
    """

    slot_R: Tensor
    place_R: Tensor
    seen: Mapping[str, Tensor]
    turns: Mapping[str, tuple[Tensor, Tensor]]
    shape: tuple[int, int]
    limit: int


class Norm(nn.Module):
    """
    A norm over the last dimension, computed in float32.

    Args:
        kind: `rms`, `rms-plus-one` or `layer`.
        weight: Its weight; [heads, H] for one per head, which has no bias.
        bias: Its bias, or None.
        eps: Its epsilon.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, kind: str, weight: Tensor, bias: Tensor | None, eps: float
    ) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        weight = weight.float()
        weight = weight + 1.0 if kind == "rms-plus-one" else weight
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.float())

    def forward(self, x: Tensor) -> Tensor:
        """The norm, in the type of `x`."""
        wide = x.float()
        if self.kind == "layer" or self.weight.ndim > 1:
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        wide = wide * self.weight
        if self.bias is not None:
            wide = wide + self.bias
        return computed(wide.to(x.dtype))


class Block(nn.Module):
    """
    One block.

    Args:
        architecture: Names of its parts.
        config: The numbers.
        index: Which block.
        linears: Linears by the map's name.
        norms: Norms by the map's name, those that the file has.
        num_places: C, for a bias of the scores.
    """

    bias: Tensor | None

    def __init__(
        self,
        architecture: Architecture,
        config: DecoderConfig,
        index: int,
        *,
        linears: Mapping[str, Linear],
        norms: Mapping[str, Norm],
        num_places: int,
    ) -> None:
        super().__init__()
        self.architecture, self.config, self.index = architecture, config, index
        self.layer_type = config.layer_types[index]
        self.linears = nn.ModuleDict({_key(k): v for k, v in linears.items()})
        self.norms = nn.ModuleDict({_key(k): v for k, v in norms.items()})
        bias_NC = None
        if config.alibi:
            bias_NC = alibi_bias(
                config.alibi,
                num_heads=config.num_heads,
                num_tokens=num_places,
                head_dim=config.head_dim,
                dtype=torch.float32,
                device=torch.device("cpu"),
            )
        self.register_buffer("bias", bias_NC)

    def forward(
        self, x_RD: Tensor, rows: Rows, key_BKCH: Tensor, value_BKCH: Tensor
    ) -> Tensor:
        """The residual stream after this block; the caches are written in place."""
        arch = self.architecture
        before = self._first(arch.attention_norm)
        mixed_RD = self._attention(self._norm(before, x_RD), rows, key_BKCH, value_BKCH)
        added_RD = self._added(arch.output, mixed_RD, arch.attention_post_norm)
        own = self._first(arch.mlp_norm)
        if self.config.parallel:
            inner = self._widen(self._norm(own or before, x_RD))
            return x_RD + added_RD + self._added(arch.down, inner, arch.mlp_post_norm)
        x_RD = x_RD + added_RD
        inner = self._widen(self._norm(own, x_RD))
        return x_RD + self._added(arch.down, inner, arch.mlp_post_norm)

    def _first(self, names: tuple[str, ...]) -> str:
        return next((name for name in names if _key(name) in self.norms), "")

    def _linear(self, name: str, x: Tensor) -> Tensor:
        y: Tensor = self.linears[_key(name)](x)
        return y

    def _norm(self, name: str, x: Tensor) -> Tensor:
        if not name or _key(name) not in self.norms:
            return x
        y: Tensor = self.norms[_key(name)](x)
        return y

    def _added(self, name: str, x: Tensor, post_norm: str) -> Tensor:
        y = self._norm(post_norm, self._linear(name, x))
        scale = self.config.residual_scale
        return y * scale if scale != 1.0 else y

    def _widen(self, x_RD: Tensor) -> Tensor:
        arch, act = self.architecture, ACTIVATIONS[self.config.activation]
        if arch.gate:
            return act(self._linear(arch.gate, x_RD)) * self._linear(arch.up, x_RD)
        y = self._linear(arch.fused_gate_up or arch.up, x_RD)
        if arch.fused_gate_up:
            gate, up = y.chunk(2, dim=-1)
            return act(gate) * up
        return act(y)

    def _attention(
        self, x_RD: Tensor, rows: Rows, key_BKCH: Tensor, value_BKCH: Tensor
    ) -> Tensor:
        """From the attention's input to the output projection's input, [R, N * H]."""
        query_RNH, key_RKH, value_RKH = self._heads(x_RD)
        turn = rows.turns.get(self.layer_type)
        if turn is not None:
            pairs = self.architecture.rotary == "pairs"
            tables = RotaryTables(cos_LR=turn[0], sin_LR=turn[1], pairs=pairs)
            query_RNH, key_RKH = _turn(query_RNH, tables), _turn(key_RKH, tables)
        dtype = key_BKCH.dtype
        key_BKCH[rows.slot_R, :, rows.place_R] = key_RKH.to(dtype)
        value_BKCH[rows.slot_R, :, rows.place_R] = value_RKH.to(dtype)
        return self._mix(query_RNH, key_BKCH, value_BKCH, rows).to(x_RD.dtype)

    def _mix(
        self, query_RNH: Tensor, key_BKCH: Tensor, value_BKCH: Tensor, rows: Rows
    ) -> Tensor:
        config = self.config
        slots, tokens = rows.shape
        _, heads, places, width = key_BKCH.shape
        shared = config.num_heads // heads
        if kernels.in_graph(query_RNH):
            scale = config.score_scale_of(self.index)
            return kernels.attention(
                query_RNH.float() * scale,
                key_BKCH,
                value_BKCH,
                rows.place_R,
                bias_NC=self.bias,
                cap=config.score_softcap,
                window=config.window_of(self.index),
                limit=rows.limit,
            )
        pairs = slots * heads
        query = query_RNH.view(slots, tokens, heads, shared, width)
        query = (query * config.score_scale_of(self.index)).permute(0, 2, 3, 1, 4)
        query = query.reshape(pairs, shared * tokens, width).to(key_BKCH.dtype)
        score = torch.bmm(query, key_BKCH.view(pairs, places, width).transpose(1, 2))
        score = score.view(slots, heads, shared, tokens, places).float()
        if config.score_softcap is not None:
            score = torch.tanh(score / config.score_softcap) * config.score_softcap
        if self.bias is not None:
            score = score + self.bias.view(1, heads, shared, 1, places)
        score = score.masked_fill(~rows.seen[self.layer_type], -torch.inf)
        weight = score.softmax(-1).to(value_BKCH.dtype)
        weight = weight.view(pairs, shared * tokens, places)
        mixed = torch.bmm(weight, value_BKCH.view(pairs, places, width))
        mixed = mixed.view(slots, heads, shared, tokens, width)
        return mixed.permute(0, 3, 1, 2, 4).reshape(slots * tokens, -1)

    def _heads(self, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [R, N, H], keys and values [R, K, H], not yet turned."""
        arch, config = self.architecture, self.config
        heads, key_heads = config.num_heads, config.num_kv_heads
        if arch.fused_qkv:
            y = self._linear(arch.fused_qkv, x_RD)
            if arch.fused_layout == "grouped":
                y = y.view(y.shape[0], key_heads, -1, config.head_dim)
                query = y[..., :-2, :].flatten(1, 2)
                return query, y[..., -2, :], y[..., -1, :]
            y = y.view(y.shape[0], -1, config.head_dim)
            return y[:, :heads], y[:, heads:-key_heads], y[:, -key_heads:]
        query = self._split(arch.query_norm, self._linear(arch.query, x_RD), heads)
        key = self._split(arch.key_norm, self._linear(arch.key, x_RD), key_heads)
        value = self._linear(arch.value, x_RD)
        return query, key, value.view(value.shape[0], key_heads, -1)

    def _split(self, name: str, x_RI: Tensor, heads: int) -> Tensor:
        """Split heads; normed all together, each with one weight or with its own."""
        split = x_RI.view(x_RI.shape[0], heads, -1)
        if not name or _key(name) not in self.norms:
            return split
        weight = self.norms[_key(name)].weight
        if isinstance(weight, Tensor) and weight.shape == x_RI.shape[-1:]:
            return self._norm(name, x_RI).view(split.shape)
        return self._norm(name, split)


def _turn(x_RNH: Tensor, tables: RotaryTables) -> Tensor:
    """
    Turn the first channels of every head, in float32.

    The tables hold one row for each row of `x`, with a head dimension between.
    """
    return rotate(x_RNH.float(), tables).to(x_RNH.dtype)


def _key(name: str) -> str:
    """A module may not have a dot in its name."""
    return name.replace(".", "__")
