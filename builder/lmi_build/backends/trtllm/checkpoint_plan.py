"""
Every tensor of every rank of a TensorRT-LLM checkpoint, planned from shapes alone.

Sources: TensorRT-LLM 0.8.0 to 0.16, models/{llama,qwen,gemma,gpt,opt,gptneox}/model.py
(what is declared) and the converters named in models.toml (what is filled in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.checkpoint_shards import (
    Cut,
    Mapping2D,
    RankLinear,
    ShardTensor,
    bias_shard,
    head_ranges,
    joined,
    key_heads,
    query_heads,
    share,
    table_shard,
    vector_shard,
    weight_shard,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmi_build.backends.trtllm.models import TrtllmModel
    from lmi_build.catalog.architectures import Architecture
    from lmi_build.values.model import ModelGeometry

# Routers decide in float32 in a checkpoint of any dtype (models/llama/convert.py).
ROUTER_DTYPE = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceModel:
    """
    What is converted.

    Args:
        row: What TensorRT-LLM has for it.
        architecture: Where its parts are, located in these files.
        geometry: Its sizes.
        shapes: Shape of every tensor of the files.
        dtype: Of the checkpoint.
        num_experts: Experts of a block; 0 where there are none.
        parallel_embedding: The embedding is split over ranks.
        shared_head: The head is left out; the embedding serves for it.
        quantized: Linears that the files hold as codes.
    """

    row: TrtllmModel
    architecture: Architecture
    geometry: ModelGeometry
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    num_experts: int = 0
    parallel_embedding: bool = False
    shared_head: bool = False
    quantized: frozenset[str] = frozenset()

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        head = f"{self.architecture.head}.weight"
        return self.geometry.tie_word_embeddings or head not in self.shapes


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


def layer_linears(
    model: SourceModel, prefix: str, layer: int, tp: int, position: int
) -> Iterator[RankLinear]:
    """
    The fused linears of one block, without experts.

    Args:
        model: What is converted.
        prefix: The block's name in the rank's file.
        layer: Its number in the model.
        tp: Ranks that share it.
        position: Which of them.
    """
    geometry, architecture = model.geometry, model.architecture
    block, names = architecture.block(layer), model.row.names
    width = geometry.num_attention_heads * geometry.head_dim
    cuts = _qkv(model, block, tp, position)
    yield RankLinear(
        name=f"{prefix}.{names['qkv']}",
        role="qkv",
        cuts=cuts,
        readers=tuple(dict.fromkeys(cut.module for cut in cuts)),
        scale_owner=f"{prefix}.{names['attention_norm']}",
    )
    yield _row(model, prefix, block, "output", width, tp, position)
    if model.num_experts:
        return
    yield from _widening(model, prefix, block, tp, position)
    yield _row(model, prefix, block, "down", geometry.intermediate_size, tp, position)


def _widening(
    model: SourceModel, prefix: str, block: str, tp: int, position: int
) -> Iterator[RankLinear]:
    """Gate and up; the first holds the scale of the inputs for both."""
    inner, hidden = model.geometry.intermediate_size, model.geometry.hidden_size
    readers = tuple(f"{block}.{module}" for module in model.architecture.widening)
    parts = ("gate", "up") if model.architecture.gate else ("up",)
    owner = f"{prefix}.{model.row.names['mlp_norm']}"
    for part, module in zip(parts, readers, strict=True):
        cut = Cut(
            module=module,
            full=(inner, hidden),
            outputs=(share(inner, tp, position),),
            inputs=(0, hidden),
        )
        yield RankLinear(
            name=f"{prefix}.{model.row.names[part]}",
            role="column",
            cuts=(cut,),
            readers=readers,
            scale_owner=owner if part == parts[0] else "",
        )


def _row(
    model: SourceModel,
    prefix: str,
    block: str,
    part: str,
    width: int,
    tp: int,
    position: int,
) -> RankLinear:
    """A linear that is cut along its inputs: `output` or `down`."""
    hidden = model.geometry.hidden_size
    module = f"{block}.{getattr(model.architecture, part)}"
    name = f"{prefix}.{model.row.names[part]}"
    cut = Cut(
        module=module,
        full=(hidden, width),
        outputs=((0, hidden),),
        inputs=share(width, tp, position),
    )
    return RankLinear(
        name=name,
        role="row",
        cuts=(cut,),
        readers=(module,),
        scale_owner=name.rpartition(".")[0],
    )


def _qkv(
    model: SourceModel, block: str, tp: int, position: int
) -> tuple[Cut, Cut, Cut]:
    """Queries, keys and values of one rank's heads."""
    geometry, architecture = model.geometry, model.architecture
    heads, keys = geometry.num_attention_heads, geometry.num_key_value_heads
    width, hidden = geometry.head_dim, geometry.hidden_size
    mine, shared = query_heads(heads, tp, position), key_heads(keys, tp, position)

    def cut(module: str, rows: int, outputs: tuple[tuple[int, int], ...]) -> Cut:
        return Cut(
            module=f"{block}.{module}",
            full=(rows, hidden),
            outputs=outputs,
            inputs=(0, hidden),
        )

    if not architecture.fused_qkv:
        return (
            cut(architecture.query, heads * width, head_ranges(mine, width)),
            cut(architecture.key, keys * width, head_ranges(shared, width)),
            cut(architecture.value, keys * width, head_ranges(shared, width)),
        )
    fused, total = architecture.fused_qkv, (heads + 2 * keys) * width
    if architecture.fused_layout == "concat":
        starts = (heads * width, (heads + keys) * width)
        queries = head_ranges(mine, width)
        stride = width
    else:
        group = heads // keys
        stride = (group + 2) * width
        starts = (group * width, (group + 1) * width)
        rows = (head // group * stride + head % group * width for head in mine)
        queries = joined((row, row + width) for row in rows)
    first, second = (
        head_ranges(shared, width, stride=stride, start=start) for start in starts
    )
    return (
        cut(fused, total, queries),
        cut(fused, total, first),
        cut(fused, total, second),
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


def expert_linears(
    model: SourceModel, prefix: str, layer: int, tp: int, position: int
) -> list[RankLinear]:
    """
    The fused linears of each expert of a block: up before gate, and down.

    Args:
        model: What is converted.
        prefix: The block's name in the rank's file.
        layer: Its number in the model.
        tp: Ranks that share each expert.
        position: Which of them.
    """
    count, names = model.num_experts, model.row.names
    if not count:
        return []
    geometry, block = model.geometry, model.architecture.block(layer)
    inner, hidden = geometry.intermediate_size, geometry.hidden_size
    mine, folder = share(inner, tp, position), _folder(model, block)
    linears = []
    for number in range(count):
        gate, up, down = (
            f"{block}.{part}" for part in model.architecture.expert(folder, number)
        )
        widening = tuple(
            Cut(
                module=module,
                full=(inner, hidden),
                outputs=(mine,),
                inputs=(0, hidden),
            )
            for module in (up, gate)
        )
        narrowing = Cut(
            module=down, full=(hidden, inner), outputs=((0, hidden),), inputs=mine
        )
        expert = (number, count)
        linears += [
            RankLinear(
                name=f"{prefix}.{names['experts_in']}",
                role="column",
                cuts=widening,
                readers=(up, gate),
                expert=expert,
            ),
            RankLinear(
                name=f"{prefix}.{names['experts_out']}",
                role="row",
                cuts=(narrowing,),
                readers=(down,),
                expert=expert,
            ),
        ]
    return linears


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


def _folder(model: SourceModel, block: str) -> str:
    """Where the experts are, relative to a block."""
    for folder in model.architecture.experts:
        if any(name.startswith(f"{block}.{folder}.") for name in model.shapes):
            return folder
    return model.architecture.experts[0]


def _weight(model: SourceModel, linear: RankLinear) -> ShardTensor:
    return weight_shard(linear, model.dtype, transposed=model.architecture.transposed)


def _biases(model: SourceModel, linear: RankLinear) -> Iterator[ShardTensor]:
    """The bias of a linear, if its first part has one."""
    if f"{linear.cuts[0].module}.bias" in model.shapes:
        yield bias_shard(linear, model.dtype)
