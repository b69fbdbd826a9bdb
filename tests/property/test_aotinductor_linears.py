"""Laws of linears that keep their weights small: the values are the codes' values."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from formats import Shape, random_codes, scheme
from lmi_build.backends.aotinductor.decoder import PLACES, num_places
from lmi_build.backends.aotinductor.graphs import graphs_of
from lmi_build.backends.aotinductor.linears import FEW_ROWS, FloatLinear
from lmi_build.backends.aotinductor.repack import grouped_linear, round_head
from lmi_build.checkpoint.formats.codec import weight_of
from lmi_build.package.handlers.aotinductor import PIECE_COST, cheapest

FORMS = st.builds(
    scheme,
    st.sampled_from(["gptq_v2", "pack-quantized"]),
    weight_bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([-1, 16, 32]),
    sym=st.booleans(),
    act_order=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(
    form=FORMS,
    outputs=st.sampled_from([1, 7, 32]),
    groups=st.integers(1, 4),
    rows=st.integers(1, FEW_ROWS + 3),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_the_weights(
    form: object, outputs: int, groups: int, rows: int, seed: int
) -> None:
    """Few rows and many give what float64 gives with the dequantized weights."""
    shape = Shape(num_outputs=outputs, num_inputs=32 * groups)
    codes = random_codes(shape, form, seed=seed)  # type: ignore[arg-type]
    linear = grouped_linear("m", codes, form)  # type: ignore[arg-type]
    x_RI = torch.randn(rows, 32 * groups, generator=torch.Generator().manual_seed(seed))
    wanted = x_RI.double().numpy() @ weight_of(codes).double().numpy().T

    found = linear(x_RI).double().numpy()
    # Sums of up to 128 float32 products, of codes before their zero point is taken.
    size = np.abs(x_RI.double().numpy()) @ np.abs(weight_of(codes).double().numpy().T)
    assert np.all(np.abs(found - wanted) <= 2e-5 * size + 1e-4)


@settings(max_examples=40, deadline=None)
@given(form=FORMS, seed=st.integers(0, 99))
def test_packing_keeps_every_value(form: object, seed: int) -> None:
    """What is stored dequantizes to exactly what the format dequantizes to."""
    codes = random_codes(Shape(num_outputs=8), form, seed=seed)  # type: ignore[arg-type]
    linear = grouped_linear("m", codes, form)  # type: ignore[arg-type]
    wanted = weight_of(codes)
    if linear.order is not None:
        wanted = wanted[:, linear.order]

    assert torch.equal(linear.weight(), wanted)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_rounded_head_is_within_half_a_step(rows: int, seed: int) -> None:
    """No weight moves by more than half of its group's step."""
    generator = torch.Generator().manual_seed(seed)
    head = FloatLinear(torch.randn(rows, 128, generator=generator).bfloat16())
    rounded = round_head(head)

    moved = (rounded.weight() - head.weight.float()).abs().view(rows, 2, 64)
    assert bool((moved <= rounded.scale[..., None] * 0.5001).all())


@given(length=st.integers(1, 100_000))
def test_a_cache_has_a_place_for_padding(length: int) -> None:
    """Every token has a place, padding has one, and reads are aligned."""
    places = num_places(length)

    assert length < places <= length + PLACES
    assert places % PLACES == 0


@given(
    buckets=st.sets(st.integers(16, 4096), min_size=1, max_size=4),
    slots=st.integers(1, 64),
)
def test_every_graph_has_its_own_name(buckets: set[int], slots: int) -> None:
    """Names say kind and size, and none is there twice."""
    graphs = graphs_of(
        context_buckets=sorted(buckets), batch_sizes=sorted({1, slots}), score_rows=32
    )
    names = [graph.name for graph in graphs]

    assert len(set(names)) == len(names)
    assert {f"context_{size}" for size in buckets} < set(names)
    assert {"generation_1", f"generation_{slots}"} <= set(names)


@given(
    buckets=st.sets(st.integers(16, 4096), min_size=1, max_size=4),
    left=st.integers(1, 9000),
)
def test_pieces_of_a_prompt_are_soon_read(buckets: set[int], left: int) -> None:
    """A piece is never longer than needed, and padding never costs more than pieces."""
    sizes = sorted(buckets)
    chosen = cheapest(sizes, left)
    holds = next((size for size in sizes if size >= left), sizes[-1])

    assert chosen in buckets
    assert chosen <= holds
    pieces = -(-left // chosen)
    assert pieces * (chosen + PIECE_COST) <= -(-left // holds) * (holds + PIECE_COST)
