"""
What enters the first block of a decoder.

Shape suffixes: N samples, S samples of one chunk, L tokens of a sample, D residual
width, U tokens that occur at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmi_build.catalog.architectures import Architecture
    from lmi_build.checkpoint.reader import CheckpointReader
    from lmi_build.decoders.decoder_config import DecoderConfig


def embed(
    architecture: Architecture,
    config: DecoderConfig,
    reader: CheckpointReader,
    tokens_NL: Tensor,
    dtype: torch.dtype,
) -> Callable[[slice], Tensor]:
    """
    Embed a few samples at a time.

    Only the table's rows of tokens that occur are read. What is done to each token by
    itself, such as a norm, is done to these rows.

    Args:
        architecture: The map.
        config: The numbers.
        reader: The model.
        tokens_NL: Token ids, int64, on the device of the computation.
        dtype: Of the computation.

    Returns:
        A function from a slice of samples to [S, L, D].
    """
    architecture = architecture.locate(reader.tensors)
    device = tokens_NL.device
    token_U, inverse_NL = torch.unique(tokens_NL, return_inverse=True)
    table = f"{architecture.embedding}.weight"
    row_UD = reader.read_rows(table, token_U.tolist()).to(device, dtype)
    if config.embedding_scale != 1.0:
        # transformers rounds the factor to the dtype as well.
        row_UD = row_UD * torch.tensor(config.embedding_scale, device=device).to(dtype)
    if architecture.embedding_norm:
        weight, bias = (
            reader.read(f"{architecture.embedding_norm}.{part}").to(device, dtype)
            for part in ("weight", "bias")
        )
        row_UD = functional.layer_norm(
            row_UD, weight.shape, weight, bias, config.norm_eps
        )
    if not architecture.positions:
        return lambda part: row_UD[inverse_NL[part]]
    first = architecture.position_offset
    places = list(range(first, first + tokens_NL.shape[1]))
    place_LD = reader.read_rows(f"{architecture.positions}.weight", places)
    place_LD = place_LD.to(device, dtype)
    return lambda part: row_UD[inverse_NL[part]] + place_LD
