"""
The fused linears of one block, as each rank has them.

Sources: TensorRT-LLM 0.8.0 to 0.16, models/{llama,qwen,gemma,gpt,opt,gptneox}/model.py
(what is declared) and the converters named in models.toml (what is filled in).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.checkpoint_shards import (
    Cut,
    RankLinear,
    head_ranges,
    joined,
    key_heads,
    query_heads,
    share,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.trtllm.source_model import SourceModel


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


def _folder(model: SourceModel, block: str) -> str:
    """Where the experts are, relative to a block."""
    for folder in model.architecture.experts:
        if any(name.startswith(f"{block}.{folder}.") for name in model.shapes):
            return folder
    return model.architecture.experts[0]
