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

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmi_build.backends.aotinductor import kernels
from lmi_build.backends.aotinductor.blocks import Rows
from lmi_build.backends.aotinductor.linears import float_product
from lmi_build.decoders.rotary import rotary_tables

if TYPE_CHECKING:
    from lmi_build.backends.aotinductor.blocks import Block, Norm
    from lmi_build.backends.aotinductor.linears import Linear
    from lmi_build.catalog.architectures import Architecture
    from lmi_build.decoders.decoder_config import DecoderConfig

# Caches have a multiple of so many places, for aligned reads.
PLACES = 16


def num_places(max_seq_len: int) -> int:
    """Places of a cache: every token's, and at least one for what is padding."""
    return -(-(max_seq_len + 1) // PLACES) * PLACES


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
        if self.config.logit_scale != 1.0:
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
        seen, turns = {}, {}
        for kind in self.layer_types:
            if not kernels.in_graph(place_R):
                seen[kind] = self._seen(place_R.view(slots, 1, 1, tokens, 1), kind)
            if kind in self.config.ropes:
                inside = place_R.clamp(max=self.max_seq_len - 1)
                tables = (getattr(self, f"cos_{kind}"), getattr(self, f"sin_{kind}"))
                cos, sin = (functional.embedding(inside, t)[:, None] for t in tables)
                turns[kind] = (cos, sin)
        return Rows(
            slot_R=slot_R,
            place_R=place_R,
            seen=seen,
            turns=turns,
            shape=shape,
            limit=self.max_seq_len,
        )

    def _seen(self, own_BL: Tensor, kind: str) -> Tensor:
        """Which places rows at these places see: bool [B, 1, 1, L, C]."""
        place_C = torch.arange(self.places, device=own_BL.device)
        seen = place_C <= own_BL
        window = self.config.window_of(self.config.layer_types.index(kind))
        if window is not None and window < self.max_seq_len:
            seen = seen & (place_C > own_BL - window)
        return seen
