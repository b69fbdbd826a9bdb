"""Laws of how a model is split over ranks, for any sizes that the ranks divide."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from lmi_build.backends.trtllm.checkpoint_plan import plan_checkpoint
from lmi_build.backends.trtllm.checkpoint_shards import (
    Mapping2D,
    head_ranges,
    joined,
    key_heads,
    query_heads,
    table_shard,
)
from lmi_build.backends.trtllm.models import (
    is_since,
    trtllm_models,
    value_at,
    version_key,
)
from lmi_build.backends.trtllm.source_model import SourceModel
from lmi_build.catalog.architectures import architectures
from lmi_build.values.model import ModelGeometry

if TYPE_CHECKING:
    from lmi_build.backends.trtllm.checkpoint_plan import RankPlan

OURS = [name for name, row in trtllm_models().items() if row.ours]


@st.composite
def models(draw: st.DrawFn) -> tuple[SourceModel, Mapping2D]:
    """A float model of any architecture and a split that fits it."""
    name = draw(st.sampled_from(OURS))
    tp, pp = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 3]))
    keys = draw(st.sampled_from([1, 2, 4, 8]))
    fused = name == "GPT2LMHeadModel"
    heads = keys if fused else keys * draw(st.integers(1, 3))
    heads *= 1 if heads % tp == 0 else tp
    keys = heads if fused else keys
    geometry = ModelGeometry(
        architecture=name,
        model_type="",
        num_layers=draw(st.integers(pp, 5)),
        hidden_size=draw(st.integers(1, 5)) * 4,
        intermediate_size=draw(st.integers(1, 4)) * tp,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=draw(st.integers(1, 3)),
        vocab_size=draw(st.integers(4, 19)),
        max_position_embeddings=draw(st.integers(1, 9)),
        tie_word_embeddings=draw(st.booleans()),
    )
    architecture = architectures()[name]
    head = f"{architecture.head}.weight"
    model = SourceModel(
        row=trtllm_models()[name],
        architecture=architecture,
        geometry=geometry,
        shapes={head: (geometry.vocab_size, geometry.hidden_size)},
        dtype="float16",
        num_experts=draw(st.integers(1, 3)) if architecture.experts else 0,
    )
    return model, Mapping2D(tp=tp, pp=pp)


def _uses(plans: tuple[RankPlan, ...]) -> dict[str, Counter[tuple[int, int]]]:
    """How often each element of each source is held."""
    uses: dict[str, Counter[tuple[int, int]]] = {}
    for plan in plans:
        for tensor in plan.tensors:
            for block in tensor.blocks:
                uses.setdefault(block.source, Counter()).update(
                    (row, col)
                    for row in range(*block.rows)
                    for col in range(*block.cols)
                )
    return uses


@given(case=models())
def test_every_element_is_held(case: tuple[SourceModel, Mapping2D]) -> None:
    """Nothing of a tensor is left out, but OPT's positions before the first."""
    model, mapping = case
    plans = plan_checkpoint(model, mapping)

    full = {
        block.source: block.full
        for plan in plans
        for tensor in plan.tensors
        for block in tensor.blocks
        if block.source
    }
    uses = _uses(plans)
    for source, (rows, cols) in full.items():
        skipped = model.architecture.position_offset
        first = skipped if "positions" in source else 0
        wanted = {(row, col) for row in range(first, rows) for col in range(cols)}
        assert set(uses[source]) == wanted, source


@given(case=models())
def test_weights_of_linears_are_held_once_or_by_all(
    case: tuple[SourceModel, Mapping2D],
) -> None:
    """A rank shares no weight with others, except key heads that are too few."""
    model, mapping = case
    tp, keys = mapping.tp, model.geometry.num_key_value_heads
    copies = max(1, tp // keys)
    for source, counts in _uses(plan_checkpoint(model, mapping)).items():
        linear = source.endswith("_proj.weight") or ".w1." in source
        if linear and not any(x in source for x in ("k_proj", "v_proj")):
            assert set(counts.values()) == {1}, source
        elif linear:
            assert set(counts.values()) == {copies}, source


@given(case=models())
def test_ranks_of_a_stage_have_equal_files(
    case: tuple[SourceModel, Mapping2D],
) -> None:
    """Names, dtypes and shapes are the same for all ranks of a stage."""
    model, mapping = case
    plans = plan_checkpoint(model, mapping)

    assert [plan.rank for plan in plans] == list(range(mapping.world))
    for stage in range(mapping.pp):
        files = {
            tuple((item.name, item.dtype, item.shape) for item in plan.tensors)
            for plan in plans[stage * mapping.tp : (stage + 1) * mapping.tp]
        }
        assert len(files) == 1


@given(case=models())
def test_names_are_used_once(case: tuple[SourceModel, Mapping2D]) -> None:
    model, mapping = case
    for plan in plan_checkpoint(model, mapping):
        names = [tensor.name for tensor in plan.tensors]

        assert len(names) == len(set(names))


@given(layers=st.integers(1, 99), data=st.data())
def test_stages_share_all_layers(layers: int, data: st.DataObject) -> None:
    """Each layer once and in order; no stage has two more than another, or none."""
    pp = data.draw(st.integers(1, layers))
    stages = [Mapping2D(pp=pp).layers(stage, layers) for stage in range(pp)]

    assert [layer for stage in stages for layer in stage] == list(range(layers))
    assert [len(stage) for stage in stages] == sorted(map(len, stages), reverse=True)
    assert len(stages[0]) - len(stages[-1]) <= 1
    assert len(stages[-1]) > 0


@given(
    group=st.integers(1, 4), keys=st.sampled_from([1, 2, 4, 8]), tp=st.integers(0, 3)
)
def test_queries_find_their_keys(group: int, keys: int, tp: int) -> None:
    """The key head of each query head of a rank is on that rank."""
    ranks, heads = 1 << tp, group * keys * (1 << tp)
    size = heads // keys
    for rank in range(ranks):
        mine = key_heads(keys, ranks, rank)
        assert {head // size for head in query_heads(heads, ranks, rank)} <= set(mine)


@given(first=st.integers(0, 9), count=st.integers(1, 5), width=st.integers(1, 4))
def test_heads_that_touch_are_one_range(first: int, count: int, width: int) -> None:
    ranges = head_ranges(range(first, first + count), width)

    assert ranges == ((first * width, (first + count) * width),)


@given(st.lists(st.integers(0, 30), min_size=1, unique=True).map(sorted))
def test_joining_keeps_rows_in_order(rows: list[int]) -> None:
    ranges = joined((row, row + 1) for row in rows)

    assert [row for first, last in ranges for row in range(first, last)] == rows


@given(rows=st.integers(1, 9), first=st.integers(0, 12), count=st.integers(1, 6))
def test_rows_past_a_table_are_zeros(rows: int, first: int, count: int) -> None:
    shard = table_shard("t", "s", (rows, 2), (first, first + count), "float16")

    held = sum(block.num_elements for block in shard.blocks if block.source)
    assert held == 2 * len(set(range(first, first + count)) & set(range(rows)))


@given(
    versions=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=1, unique=True
    )
)
def test_a_table_by_version_gives_the_newest_reached(
    versions: list[tuple[int, int]],
) -> None:
    table = {f"{major}.{minor}": (major, minor) for major, minor in versions}
    for major, minor in versions:
        assert value_at(table, f"{major}.{minor}.7") == (major, minor)
        assert is_since(f"{major}.{minor}rc1", f"{major}.{minor}")
    oldest = min(versions)
    assert value_at(table, f"{oldest[0]}.{oldest[1]}") == version_key(
        f"{oldest[0]}.{oldest[1]}"
    )
    assert not is_since("0.21.0", "")
