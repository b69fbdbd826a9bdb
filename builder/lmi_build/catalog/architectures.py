"""Decoder architectures the built-in quantizer can walk through, read from data."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Tensors of the model around the blocks, by full name.
_OUTER = (
    "embedding",
    "blocks",
    "final_norm",
    "positions",
    "embedding_norm",
)
# What a table of the data file may say beside the fields of `Architecture`.
_BASE = "base"


class Names(Protocol):
    """Whatever knows which tensors a checkpoint has: a set, a table, a reader."""

    def __contains__(self, name: str, /) -> bool:
        """Whether there is a tensor of that name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """
    Where the parts of a decoder are, by tensor name without `.weight`.

    A part with an empty name does not exist. Of a part with several names the first
    that a block's file has is meant. Biases are used wherever the file has one.

    Args:
        name: Entry of `architectures` in `config.json`.
        model_type: `model_type` in `config.json`.
        source: Where the map was read.
        prefix: What the names below begin with, and some files leave out.
        embedding: Token embedding.
        positions: Learned position table, added to the embedding.
        position_offset: Rows of that table before position 0.
        embedding_norm: Norm of the embedding.
        blocks: Prefix of the blocks; a block is `<blocks>.<index>`.
        final_norm: Norm after the last block.
        head: Language-model head.
        norm: `rms`, `rms-plus-one` (multiplies by 1 + weight) or `layer`.
        attention_norm: Norm before attention, relative to a block.
        attention_post_norm: Norm of what attention adds.
        mlp_norm: Norm before the feed-forward part; where a file of a parallel block
            has none, the attention's norm serves both.
        mlp_post_norm: Norm of what the feed-forward part adds.
        query: Query projection.
        key: Key projection.
        value: Value projection.
        fused_qkv: The three in one.
        fused_layout: `concat` (all queries, all keys, all values) or `grouped` (for
            each key head its queries, its key, its value).
        query_norm: Norm of the queries; of heads where its weight is as wide as one.
        key_norm: Norm of the keys.
        output: Projection of the attention's result.
        gate: Gate projection, through the activation function; empty where there is
            none and the activation follows `up`.
        up: Up projection.
        fused_gate_up: The two in one, gate first.
        down: Down projection.
        router: Chooses experts; blocks without one have the parts above.
        experts: Prefix of the experts.
        expert_gate: Gate projection, relative to an expert.
        expert_up: Up projection, relative to an expert.
        expert_down: Down projection, relative to an expert.
        fused_experts: Names of tensors that hold all experts at once, which is refused.
        shared_router: Weighs the shared expert.
        shared_gate: Gate projection of the shared expert.
        shared_up: Up projection of the shared expert.
        shared_down: Down projection of the shared expert.
        rotary: `half` (channel i turns with i + R / 2), `pairs` (2i with 2i + 1) or
            empty.
        windows: Which blocks see only `sliding_window` tokens: `all`, `from`
            (`max_window_layers` on), `even-below` (even ones below it), `pattern` (all
            but every n-th, which sees everything) or empty.
        transposed: Linears are stored as [I, O].
        keys: Names in `config.json` of what `DecoderConfig` wants, where they differ
            from the usual ones.
        defaults: What `config.json` means where it is silent.
        must: Entries of `config.json` that may have only these values.
        activations: Other meanings of activation names.
    """

    name: str
    model_type: str
    source: str
    prefix: str
    embedding: str
    blocks: str
    final_norm: str
    head: str
    norm: str
    mlp_norm: tuple[str, ...]
    attention_norm: tuple[str, ...]
    output: str
    down: str
    positions: str = ""
    position_offset: int = 0
    embedding_norm: str = ""
    attention_post_norm: str = ""
    mlp_post_norm: str = ""
    query: str = ""
    key: str = ""
    value: str = ""
    fused_qkv: str = ""
    fused_layout: str = ""
    query_norm: str = ""
    key_norm: str = ""
    gate: str = ""
    up: str = ""
    fused_gate_up: str = ""
    router: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    expert_gate: str = ""
    expert_up: str = ""
    expert_down: str = ""
    fused_experts: tuple[str, ...] = ()
    shared_router: str = ""
    shared_gate: str = ""
    shared_up: str = ""
    shared_down: str = ""
    rotary: str = ""
    windows: str = ""
    transposed: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    must: Mapping[str, Any] = field(default_factory=dict)
    activations: Mapping[str, str] = field(default_factory=dict)

    @property
    def projections(self) -> tuple[str, ...]:
        """Linears that read the attention's input."""
        if self.fused_qkv:
            return (self.fused_qkv,)
        return (self.query, self.key, self.value)

    @property
    def widening(self) -> tuple[str, ...]:
        """Linears that read the feed-forward part's input, where it has no experts."""
        if self.fused_gate_up:
            return (self.fused_gate_up,)
        return (self.gate, self.up) if self.gate else (self.up,)

    def block(self, index: int) -> str:
        """Prefix of one block, without a final dot."""
        return f"{self.blocks}.{index}"

    def attention(self, index: int) -> str:
        """Module of one block's attention."""
        return f"{self.block(index)}.{self.output.rpartition('.')[0]}"

    def linears(self, names: Names, index: int) -> tuple[str, ...]:
        """
        Every linear of one block that a file has, in the order of computation.

        Args:
            names: Tensors of the file.
            index: Which block.

        Returns:
            Names relative to the block.
        """
        block = self.block(index)
        every = (
            *self.projections,
            self.output,
            *self.widening,
            self.down,
            *(x for x in (self.shared_gate, self.shared_up, self.shared_down) if x),
            *self._expert_linears(names, block),
        )
        return tuple(name for name in every if f"{block}.{name}.weight" in names)

    def expert(self, experts: str, number: int) -> tuple[str, str, str]:
        """Gate, up and down of one expert, relative to a block."""
        parts = (self.expert_gate, self.expert_up, self.expert_down)
        gate, up, down = (f"{experts}.{number}.{part}" for part in parts)
        return gate, up, down

    def _expert_linears(self, names: Names, block: str) -> Iterator[str]:
        for experts in self.experts:
            number = 0
            while True:
                linears = self.expert(experts, number)
                if f"{block}.{linears[-1]}.weight" not in names:
                    break
                yield from linears
                number += 1

    def locate(self, names: Names) -> Architecture:
        """
        The same map for a file that leaves out the prefix.

        Args:
            names: Tensors of the file.
        """
        if not self.prefix or f"{self.embedding}.weight" in names:
            return self
        bare = {
            name: getattr(self, name).removeprefix(f"{self.prefix}.") for name in _OUTER
        }
        found = f"{bare['embedding']}.weight" in names
        return replace(self, **bare) if found else self


@cache
def architectures() -> Mapping[str, Architecture]:
    """
    Every known architecture by name.

    Raises:
        ValueError: The data file has a wrong key; a fault of the package.
    """
    path = files("lmi_build.catalog").joinpath("architectures.toml")
    tables = tomllib.loads(path.read_text("utf-8"))
    return MappingProxyType(
        {name: _architecture(name, _inherit(name, tables)) for name in tables}
    )


def find_architecture(
    config: Mapping[str, object], names: Names | None = None
) -> Architecture | None:
    """
    The map of a model's architecture, if there is one.

    Args:
        config: `config.json`.
        names: Tensors of the checkpoint; where given, the map is located in it.
    """
    named = config.get("architectures")
    if not isinstance(named, list | tuple):
        return None
    known = architectures()
    found = next((known[name] for name in named if name in known), None)
    return found if found is None or names is None else found.locate(names)


def _inherit(name: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    """A table with what it takes over; nested tables are merged as well."""
    own = dict(tables[name])
    base = own.pop(_BASE, None)
    if base is None:
        return own
    merged = _inherit(base, tables)
    for key, value in own.items():
        merged[key] = {**merged.get(key, {}), **value} if _is_table(value) else value
    return merged


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _architecture(name: str, table: dict[str, Any]) -> Architecture:
    known = {item.name for item in fields(Architecture)} - {"name"}
    if not set(table) <= known:
        msg = f"architectures.toml: [{name}] has {sorted(set(table) - known)}"
        raise ValueError(msg)
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in table.items()
    }
    return Architecture(name=name, **values)
