"""
Every tensor of every rank of a TensorRT-LLM checkpoint, planned from shapes alone.

Sources: TensorRT-LLM 0.8.0 to 0.16, models/{llama,qwen,gemma,gpt,opt,gptneox}/model.py
(what is declared) and the converters named in models.toml (what is filled in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.block_linears import expert_linears, layer_linears
from lmi_build.backends.trtllm.checkpoint_shards import (
    Mapping2D,
    RankLinear,
    ShardTensor,
    bias_shard,
    share,
    table_shard,
    vector_shard,
    weight_shard,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmi_build.backends.trtllm.source_model import SourceModel

# Routers decide in float32 in a checkpoint of any dtype (models/llama/convert.py).
ROUTER_DTYPE = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlan:
    """
    What one rank's file holds.

    Args:
        rank: Its number.
        tensors: Everything that is copied.
        linears: Linears that come as codes; their biases are among the tensors.
        float_linears: Names of the other linears, in the rank's file.
    """

    rank: int
    tensors: tuple[ShardTensor, ...]
    linears: tuple[RankLinear, ...] = ()
    float_linears: tuple[str, ...] = ()


def plan_checkpoint(model: SourceModel, mapping: Mapping2D) -> tuple[RankPlan, ...]:
    """
    Plan all ranks.

    Args:
        model: What is converted.
        mapping: How it is split; its sizes divide the model's (`checkpoint_problems`).

    Returns:
        One plan per rank, in order.
    """
    return tuple(
        _plan_rank(model, mapping, stage, position)
        for stage in range(mapping.pp)
        for position in range(mapping.tp)
    )


def _plan_rank(
    model: SourceModel, mapping: Mapping2D, stage: int, position: int
) -> RankPlan:
    tensors: list[ShardTensor] = []
    linears: list[RankLinear] = []
    floats: list[str] = []
    layers = mapping.layers(stage, model.geometry.num_layers)
    if stage == 0:
        tensors += _embeddings(model, mapping, position)
    for local, layer in enumerate(layers):
        prefix = f"{model.row.names['blocks']}.{local}"
        tensors += _norms(model, prefix, layer)
        experts = expert_linears(model, prefix, layer, mapping.tp, position)
        tensors += _router(model, prefix, layer)
        if any(cut.module in model.quantized for item in experts for cut in item.cuts):
            linears += experts
        else:
            tensors += _expert_tensors(model, experts)
        for linear in layer_linears(model, prefix, layer, mapping.tp, position):
            tensors += _biases(model, linear)
            if all(cut.module in model.quantized for cut in linear.cuts):
                linears.append(linear)
            else:
                floats.append(linear.name)
                tensors.append(_weight(model, linear))
    if stage == mapping.pp - 1:
        tensors += _norm(model, model.architecture.final_norm, "final_norm", "")
        if not model.shared_head:
            tensors.append(_head(model, mapping.tp, position))
    return RankPlan(
        rank=stage * mapping.tp + position,
        tensors=tuple(tensors),
        linears=tuple(linears),
        float_linears=tuple(floats),
    )


def _embeddings(
    model: SourceModel, mapping: Mapping2D, position: int
) -> Iterator[ShardTensor]:
    geometry, architecture = model.geometry, model.architecture
    full = (geometry.vocab_size, geometry.hidden_size)
    parts = mapping.tp if model.parallel_embedding else 1
    yield table_shard(
        f"{model.row.names['embedding']}.weight",
        f"{architecture.embedding}.weight",
        full,
        share(full[0], parts, position if parts > 1 else 0),
        model.dtype,
    )
    if architecture.positions:
        first, count = architecture.position_offset, geometry.max_position_embeddings
        yield table_shard(
            f"{model.row.names['positions']}.weight",
            f"{architecture.positions}.weight",
            (first + count, geometry.hidden_size),
            (first, first + count),
            model.dtype,
        )


def _head(model: SourceModel, tp: int, position: int) -> ShardTensor:
    geometry, architecture = model.geometry, model.architecture
    module = architecture.embedding if model.tied else architecture.head
    padded = -(-geometry.vocab_size // tp) * tp
    return table_shard(
        f"{model.row.names['head']}.weight",
        f"{module}.weight",
        (geometry.vocab_size, geometry.hidden_size),
        share(padded, tp, position),
        model.dtype,
    )


def _norms(model: SourceModel, prefix: str, layer: int) -> Iterator[ShardTensor]:
    block = model.architecture.block(layer)
    for part in ("attention_norm", "mlp_norm"):
        module = getattr(model.architecture, part)[0]
        yield from _norm(model, f"{block}.{module}", part, f"{prefix}.")


def _norm(
    model: SourceModel, module: str, part: str, prefix: str
) -> Iterator[ShardTensor]:
    kind, size = model.architecture.norm, model.geometry.hidden_size
    for suffix in ("weight", "bias") if kind == "layer" else ("weight",):
        yield vector_shard(
            f"{prefix}{model.row.names[part]}.{suffix}",
            f"{module}.{suffix}",
            size,
            model.dtype,
            plus_one=kind == "rms-plus-one",
        )


def _router(model: SourceModel, prefix: str, layer: int) -> Iterator[ShardTensor]:
    """What chooses experts; whole on every rank."""
    if not model.num_experts:
        return
    block = model.architecture.block(layer)
    yield table_shard(
        f"{prefix}.{model.row.names['router']}.weight",
        f"{_first(model, block, model.architecture.router)}.weight",
        (model.num_experts, model.geometry.hidden_size),
        (0, model.num_experts),
        ROUTER_DTYPE,
    )


def _expert_tensors(
    model: SourceModel, experts: Sequence[RankLinear]
) -> Iterator[ShardTensor]:
    """All experts' float weights, piled up in two tensors."""
    for name in dict.fromkeys(item.name for item in experts):
        shards = [_weight(model, item) for item in experts if item.name == name]
        yield ShardTensor(
            name=shards[0].name,
            dtype=model.dtype,
            shape=(len(shards), *shards[0].shape),
            blocks=tuple(block for shard in shards for block in shard.blocks),
        )


def _first(model: SourceModel, block: str, modules: Sequence[str]) -> str:
    """Of several names for a part the one that the files have, else the first."""
    for module in modules:
        if f"{block}.{module}.weight" in model.shapes:
            return f"{block}.{module}"
    return f"{block}.{modules[0]}"


def _weight(model: SourceModel, linear: RankLinear) -> ShardTensor:
    return weight_shard(linear, model.dtype, transposed=model.architecture.transposed)


def _biases(model: SourceModel, linear: RankLinear) -> Iterator[ShardTensor]:
    """The bias of a linear, if its first part has one."""
    if f"{linear.cuts[0].module}.bias" in model.shapes:
        yield bias_shard(linear, model.dtype)
