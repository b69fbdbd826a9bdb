"""Decoders of the backend `aotinductor` run as plain PyTorch, for tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from lmi_build.backends.aotinductor.loading import Loader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from lmi_build.backends.aotinductor.decoder import Decoder


def load_decoder(
    folder: Path,
    *,
    max_seq_len: int = 64,
    dtype: torch.dtype = torch.float32,
    lm_head_dtype: str = "checkpoint",
) -> Decoder:
    """A checkpoint's decoder, not compiled."""
    loader = Loader(folder, json.loads((folder / "config.json").read_bytes()))
    try:
        return loader.load(
            max_seq_len=max_seq_len, dtype=dtype, lm_head_dtype=lm_head_dtype
        )
    finally:
        loader.close()


def caches(decoder: Decoder, slots: int) -> tuple[list[Tensor], list[Tensor]]:
    """Empty keys and values of all blocks."""
    shape = decoder.cache_shape(slots)
    keys = [torch.zeros(shape, dtype=decoder.dtype) for _ in decoder.blocks]
    return keys, [torch.zeros_like(key) for key in keys]


def context(
    decoder: Decoder,
    ids: Sequence[int],
    keys: list[Tensor],
    values: list[Tensor],
    *,
    start: int = 0,
    bucket: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass over a piece of a prompt: logits [1, V] and all logits [T, V]."""
    padded = torch.zeros(bucket or len(ids), dtype=torch.int64)
    padded[: len(ids)] = torch.tensor(list(ids))
    span = torch.tensor([start, len(ids)])
    with torch.inference_mode():
        last, hidden = decoder.context(padded, span, keys, values)
        return last, decoder.score(hidden)[: len(ids)]


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference of any number, over the largest number."""
    return float((found.double() - wanted.double()).abs().max() / wanted.abs().max())
