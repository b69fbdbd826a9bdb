"""Decoder architectures the built-in quantizer can walk through, read from data."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """
    Where the parts of a Llama-like decoder are, by tensor name without `.weight`.

    Args:
        name: Entry of `architectures` in `config.json`.
        model_type: `model_type` in `config.json`.
        source: Where the map was read.
        embedding: Token embedding.
        blocks: Prefix of the blocks; a block is `<blocks>.<index>`.
        final_norm: Norm after the last block.
        head: Language-model head.
        attention_norm: Norm before attention, relative to a block.
        mlp_norm: Norm before the feed-forward part.
        query: Query projection.
        key: Key projection.
        value: Value projection.
        output: Projection of the attention's result.
        gate: Gate projection, through the activation function.
        up: Up projection.
        down: Down projection.
    """

    name: str
    model_type: str
    source: str
    embedding: str
    blocks: str
    final_norm: str
    head: str
    attention_norm: str
    mlp_norm: str
    query: str
    key: str
    value: str
    output: str
    gate: str
    up: str
    down: str

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Linears of a block that share an input, in the order of computation."""
        return (
            (self.query, self.key, self.value),
            (self.output,),
            (self.gate, self.up),
            (self.down,),
        )

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear of a block."""
        return tuple(name for group in self.groups for name in group)

    @property
    def norms(self) -> tuple[str, ...]:
        """Every norm of a block."""
        return (self.attention_norm, self.mlp_norm)

    def block(self, index: int) -> str:
        """Prefix of one block, without a final dot."""
        return f"{self.blocks}.{index}"


@cache
def architectures() -> Mapping[str, Architecture]:
    """
    Every known architecture by name.

    Raises:
        ValueError: The data file has a wrong key; a fault of the package.
    """
    path = files("lmi_build.catalog").joinpath("architectures.toml")
    tables = tomllib.loads(path.read_text("utf-8"))
    wanted = {field.name for field in fields(Architecture)} - {"name"}
    for name, table in tables.items():
        if set(table) != wanted:
            msg = f"architectures.toml: [{name}] differs in {set(table) ^ wanted}"
            raise ValueError(msg)
    known = {name: Architecture(name=name, **table) for name, table in tables.items()}
    return MappingProxyType(known)
