"""What a decoder of Transformers NeuronX has beside attention, read from data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx import PACKAGE
from lmi_build.catalog.tables import read_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "tnx_models.toml"
MLPS = ("gated", "plain", "experts")


@dataclass(frozen=True, kw_only=True, slots=True)
class TnxModel:
    """
    One model type.

    Args:
        mlp: One of `MLPS`: gate, up and down; in and out; or gate, up and down of each
            expert, with a router.
        biases: Linear layers and norms have biases.
        learned_positions: Positions are a table, held where the embedding is.
        extra_positions: Rows of that table beyond the model's positions.
        embedding_norm: The embedding has a norm of its own, and attention slopes.
        context_unrolled: All layers of a prompt are one graph; else one layer is.
        single_prompts: Prompts are computed one by one and copied over the batch.
        shards_sequence: `shard_over_sequence` is implemented.
        rounds: Its weights can be rounded to 8 bits as they are loaded.
        hsb_only: Attention has the layout `HSB` alone.
        rope_scaling_since: First version that reads `rope_scaling`; empty for none.
    """

    mlp: str
    biases: bool = False
    learned_positions: bool = False
    extra_positions: int = 0
    embedding_norm: bool = False
    context_unrolled: bool = True
    single_prompts: bool = False
    shards_sequence: bool = False
    rounds: bool = False
    hsb_only: bool = False
    rope_scaling_since: str = ""


@cache
def tnx_models() -> Mapping[str, TnxModel]:
    """
    Every model type by its name.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    found = read_rows(TnxModel, FILE, package=PACKAGE)
    for name, row in found.items():
        if row.mlp not in MLPS:
            raise ValueError(f"{FILE}: [{name}], `mlp` is {row.mlp!r}")
    return found
