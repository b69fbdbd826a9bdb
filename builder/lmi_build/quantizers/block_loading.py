"""One decoder block from a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmi_build.decoders.decoder_config import check_tensors
from lmi_build.errors import Unsupported
from lmi_build.quantizers.decoder import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from lmi_build.catalog.architectures import Architecture, Names
    from lmi_build.decoders.decoder_config import DecoderConfig


def load_block(
    architecture: Architecture,
    config: DecoderConfig,
    names: Names,
    index: int,
    read: Callable[[str], Tensor],
) -> Block:
    """
    Read one block.

    Args:
        architecture: The map, located in the file (`Architecture.locate`).
        config: The numbers.
        names: Every tensor of the checkpoint.
        index: Which block.
        read: Reads one tensor by its full name, checked, in the dtype and on the
            device of the computation.

    Raises:
        Unsupported: `quantize.architecture`: all experts lie in one tensor.
    """
    prefix = architecture.block(index)
    for problem in check_tensors(architecture, names, index):
        raise Unsupported(problem.message, code=problem.code, hints=(problem.hint,))
    weights: dict[str, Tensor] = {}
    for name in _linears(architecture, names, index):
        weight = read(f"{prefix}.{name}.weight")
        weights[name] = weight.t().contiguous() if architecture.transposed else weight
    for name in _kept(architecture):
        if f"{prefix}.{name}.weight" in names:
            weights[name] = read(f"{prefix}.{name}.weight")
    for name in list(weights):
        if f"{prefix}.{name}.bias" in names:
            weights[f"{name}.bias"] = read(f"{prefix}.{name}.bias")
    for name, heads in (
        (architecture.query_norm, config.num_heads),
        (architecture.key_norm, config.num_kv_heads),
    ):
        if f"{prefix}.{name}.norms.0.weight" in names:
            each = range(heads)
            weights[name] = torch.stack(
                [read(f"{prefix}.{name}.norms.{head}.weight") for head in each]
            )
    return Block(architecture=architecture, config=config, index=index, weights=weights)


def _linears(architecture: Architecture, names: Names, index: int) -> tuple[str, ...]:
    """Those that are there, and those that must be."""
    arch, prefix = architecture, architecture.block(index)
    dense = not any(f"{prefix}.{name}.weight" in names for name in arch.router)
    needed = (*arch.projections, arch.output)
    needed += (*arch.widening, arch.down) if dense else ()
    return tuple(dict.fromkeys((*arch.linears(names, index), *needed)))


def _kept(architecture: Architecture) -> Iterator[str]:
    """What a block has beside its linears."""
    arch = architecture
    every = (
        *arch.attention_norm,
        arch.attention_post_norm,
        *arch.mlp_norm,
        arch.mlp_post_norm,
        arch.query_norm,
        arch.key_norm,
        *arch.router,
        arch.shared_router,
    )
    return (name for name in every if name)
