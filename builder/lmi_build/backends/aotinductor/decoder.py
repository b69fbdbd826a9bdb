"""
A decoder as plain PyTorch, with static caches that are inputs of its graphs.

Every architecture is the same code with other data: names, norms, rotations and
windows come from `catalog/architectures.toml` and `config.json`. Nothing of
transformers is used.

A graph computes B slots with L tokens each: a prompt's graph has one slot and many
tokens, a step's graph has all slots and one token. Each row knows its own place, so
slots need not be equally far. Rows that are padding write to places at the cache's
end that no row ever sees.

Shape suffixes: B slots, L tokens of a slot, R = B * L rows, D residual width, N query
heads, K key and value heads, n = N / K, H head width, C places of a cache, V words.

Source: transformers 5.23.0, the files named in `catalog/architectures.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmi_build.backends.aotinductor.linears import float_product
from lmi_build.decoders.activation_functions import ACTIVATIONS
from lmi_build.decoders.attention import alibi_bias
from lmi_build.decoders.rotary import RotaryTables, rotary_tables, rotate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.aotinductor.linears import Linear
    from lmi_build.catalog.architectures import Architecture
    from lmi_build.decoders.decoder_config import DecoderConfig

# Caches have a multiple of so many places, for aligned reads.
PLACES = 16


def num_places(max_seq_len: int) -> int:
    """Places of a cache: every token's, and at least one for what is padding."""
    return -(-(max_seq_len + 1) // PLACES) * PLACES


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """
    Where the rows of one pass belong.

    Args:
        slot_R: Slot of each row, counted in the caches of this graph.
        place_R: Place of each row.
        seen: For each layer type, which places a row sees: bool [B, 1, 1, L, C].
        turns: For each layer type, its tables at the rows' places: cosines and sines
            [R, 1, width].
        shape: B and L.
    """

    slot_R: Tensor
    place_R: Tensor
    seen: Mapping[str, Tensor]
    turns: Mapping[str, tuple[Tensor, Tensor]]
    shape: tuple[int, int]


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
        return wide.to(x.dtype)


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


class Decoder(nn.Module):
    """
    The whole model.

    Args:
        architecture: Names of its parts.
        config: The numbers.
        max_seq_len: Tokens that a slot can hold.
        dtype: Type of the activations and the caches.
        embedding_VD: The table, in the checkpoint's type.
        position_PD: Table of positions, from position 0 on, or None.
        embedding_norm: Norm of the embeddings, or None.
        blocks: The blocks.
        final_norm: Norm before the head.
        head: The head; None where it shares the embedding's weights.
    """

    embedding: Tensor
    positions: Tensor | None

    def __init__(  # noqa: PLR0913 - the parts of one model
        self,
        architecture: Architecture,
        config: DecoderConfig,
        *,
        max_seq_len: int,
        dtype: torch.dtype,
        embedding_VD: Tensor,
        position_PD: Tensor | None,
        embedding_norm: Norm | None,
        blocks: list[Block],
        final_norm: Norm,
        head: Linear | None,
    ) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.max_seq_len, self.places = max_seq_len, num_places(max_seq_len)
        self.register_buffer("embedding", embedding_VD)
        self.register_buffer("positions", position_PD)
        self.embedding_norm = embedding_norm
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.head = head
        self.layer_types = sorted(set(config.layer_types))
        for kind in self.layer_types:
            rope = config.ropes.get(kind)
            if rope is None:
                continue
            tables = rotary_tables(
                rope,
                num_tokens=max_seq_len,
                pairs=architecture.rotary == "pairs",
                dtype=torch.float32,
                device=torch.device("cpu"),
            )
            self.register_buffer(f"cos_{kind}", tables.cos_LR)
            self.register_buffer(f"sin_{kind}", tables.sin_LR)

    def cache_shape(self, slots: int) -> tuple[int, int, int, int]:
        """Shape of one block's keys, and of its values: [B, K, C, H]."""
        config = self.config
        return (slots, config.num_kv_heads, self.places, config.head_dim)

    def context(
        self,
        ids_L: Tensor,
        span: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """
        A piece of one slot's prompt.

        Args:
            ids_L: Token ids, int64; those after `span` are padding.
            span: int64 [2]: place of the first, and how many there are.
            keys: For each block [1, K, C, H]; written.
            values: The same.

        Returns:
            Logits after the last token [1, V], float32, and what enters the head
            [L, D].
        """
        count = torch.arange(ids_L.shape[0], device=ids_L.device)
        place_L = torch.where(count < span[1], count + span[0], self.max_seq_len)
        x_LD = self._blocks(ids_L, place_L, (1, ids_L.shape[0]), keys, values)
        last_1D = x_LD.index_select(0, span[1:] - 1)
        return self.score(last_1D), x_LD

    def generation(
        self,
        ids_B: Tensor,
        place_B: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        """
        One token for every slot.

        Args:
            ids_B: Token ids, int64.
            place_B: Where they go, int64; `max_seq_len` for a slot that rests.
            keys: For each block [B, K, C, H]; written.
            values: The same.

        Returns:
            Logits [B, V], float32.
        """
        x_BD = self._blocks(ids_B, place_B, (ids_B.shape[0], 1), keys, values)
        return self.score(x_BD)

    def score(self, x_RD: Tensor) -> Tensor:
        """Logits [R, V], float32, of what left the last norm."""
        if self.head is not None:
            logits = self.head(x_RD).float()
        else:
            logits = float_product(x_RD, self.embedding).float()
        logits = logits * self.config.logit_scale
        cap = self.config.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _blocks(
        self,
        ids_R: Tensor,
        place_R: Tensor,
        shape: tuple[int, int],
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        """From token ids to what enters the head, [R, D]."""
        config = self.config
        rows = self._rows(place_R, shape)
        x_RD = functional.embedding(ids_R, self.embedding).to(self.dtype)
        if config.embedding_scale != 1.0:
            # transformers rounds the factor to the dtype as well.
            x_RD = x_RD * torch.tensor(config.embedding_scale).to(self.dtype).item()
        if self.embedding_norm is not None:
            x_RD = self.embedding_norm(x_RD)
        if self.positions is not None:
            inside = place_R.clamp(max=self.max_seq_len - 1)
            x_RD = x_RD + functional.embedding(inside, self.positions).to(self.dtype)
        for block, key, value in zip(self.blocks, keys, values, strict=True):
            x_RD = block(x_RD, rows, key, value)
        normed: Tensor = self.final_norm(x_RD)
        return normed

    def _rows(self, place_R: Tensor, shape: tuple[int, int]) -> Rows:
        device = place_R.device
        slots, tokens = shape
        slot_R = torch.arange(slots, device=device).repeat_interleave(tokens)
        place_C = torch.arange(self.places, device=device)
        own = place_R.view(slots, 1, 1, tokens, 1)
        seen, turns = {}, {}
        for kind in self.layer_types:
            seen[kind] = place_C <= own
            window = self.config.window_of(self.config.layer_types.index(kind))
            if window is not None and window < self.max_seq_len:
                seen[kind] = seen[kind] & (place_C > own - window)
            if kind in self.config.ropes:
                inside = place_R.clamp(max=self.max_seq_len - 1)
                tables = (getattr(self, f"cos_{kind}"), getattr(self, f"sin_{kind}"))
                cos, sin = (functional.embedding(inside, t)[:, None] for t in tables)
                turns[kind] = (cos, sin)
        return Rows(slot_R=slot_R, place_R=place_R, seen=seen, turns=turns, shape=shape)


def _turn(x_RNH: Tensor, tables: RotaryTables) -> Tensor:
    """
    Turn the first channels of every head, in float32.

    The tables hold one row for each row of `x`, with a head dimension between.
    """
    return rotate(x_RNH.float(), tables).to(x_RNH.dtype)


def _key(name: str) -> str:
    """A module may not have a dot in its name."""
    return name.replace(".", "__")
