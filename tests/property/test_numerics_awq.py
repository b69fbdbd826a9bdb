"""Laws of AWQ, held against a derivation of its own in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmi_build.numerics.awq import (
    CLIPS,
    awq,
    error_prices,
    refine_clipping,
    round_codes,
    rounding_error,
    search_awq_scales,
    search_gptq_scales,
)
from lmi_build.numerics.gptq import gptq
from lmi_build.numerics.grids import Grid, dequantize, search_scales
from lmi_build.numerics.scaling import (
    SCALE_LIMIT,
    scale_problem,
    settle_scales,
    usable_scales,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_INPUTS, NUM_OUTPUTS, NUM_TOKENS = 128, 24, 512
GRID = Grid(bits=4, group_size=32, sym=False)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def layer(seed: int, *, spread: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, H and mean magnitudes; some inputs are far larger than others."""
    generator = torch.Generator().manual_seed(seed)
    w_IO = torch.randn(NUM_INPUTS, NUM_OUTPUTS, generator=generator) * 0.05
    mix_II = torch.randn(NUM_INPUTS, NUM_INPUTS, generator=generator)
    mix_II *= torch.exp(torch.randn(NUM_INPUTS, generator=generator) * spread / 3)
    x_TI = torch.randn(NUM_TOKENS, NUM_INPUTS, generator=generator) @ mix_II
    return w_IO, x_TI.T @ x_TI / NUM_TOKENS, x_TI.abs().mean(dim=0)


def rounded_float64(w: np.ndarray, grid: Grid) -> np.ndarray:
    """Weights on the grid that just spans each group, by its definition."""
    out = np.empty_like(w)
    for start in range(0, len(w), grid.group_size):
        part = w[start : start + grid.group_size]
        low, high = np.minimum(part.min(0), 0), np.maximum(part.max(0), 0)
        width = 2 * np.maximum(-low, high) if grid.sym else high - low
        scale = (width / grid.max_code).astype(np.float16).astype(np.float64)
        zero = np.full_like(scale, grid.middle)
        if not grid.sym:
            zero = np.clip(np.round(-low / scale), 1, grid.max_code)
        code = np.clip(np.round(part / scale) + zero, 0, grid.max_code)
        out[start : start + grid.group_size] = (code - zero) * scale
    return out


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_objective_is_the_error_on_the_tokens(seed: int, sym: bool) -> None:  # noqa: FBT001
    """trace(D' H D) is the mean squared output error of the scaled, rounded layer."""
    generator = torch.Generator().manual_seed(seed)
    w_IO = torch.randn(NUM_INPUTS, NUM_OUTPUTS, generator=generator) * 0.05
    x_TI = torch.randn(NUM_TOKENS, NUM_INPUTS, generator=generator)
    s_I = torch.exp(torch.randn(NUM_INPUTS, generator=generator))
    grid = Grid(bits=4, group_size=32, sym=sym)

    got = rounding_error(w_IO, x_TI.T @ x_TI / NUM_TOKENS, s_I, grid=grid)

    x, w, s = (t.double().numpy() for t in (x_TI, w_IO, s_I))
    # The product s w is taken in float32, as it is stored.
    scaled = (w_IO * s_I[:, None]).double().numpy()
    miss = (x / s) @ rounded_float64(scaled, grid) - x @ w
    assert got == pytest.approx((miss**2).sum() / NUM_TOKENS, rel=2e-3)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([3, 4]))
def test_awq_is_never_worse_than_rounding(seed: int, sym: bool, bits: int) -> None:  # noqa: FBT001
    """With the scales found, the error is at most that of rounding to nearest."""
    w_IO, h_II, mean_I = layer(seed)
    grid = Grid(bits=bits, group_size=32, sym=sym)
    s_I = search_awq_scales(w_IO, h_II, mean_I, grid=grid)
    ones_I = torch.ones(NUM_INPUTS)

    ours = float(awq(w_IO, h_II, s_I, grid=grid).error_O.sum())

    plain = awq(w_IO, h_II, ones_I, grid=grid, clip=False)
    clipped = awq(w_IO, h_II, ones_I, grid=grid)
    assert ours <= float(clipped.error_O.sum()) * (1 + 1e-5)
    assert float(clipped.error_O.sum()) <= float(plain.error_O.sum()) * (1 + 1e-5)


def test_outlier_channels_make_scaling_pay() -> None:
    """With inputs of very different size AWQ leaves less than half of the error."""
    w_IO, h_II, mean_I = layer(4, spread=6.0)
    s_I = search_awq_scales(w_IO, h_II, mean_I, grid=GRID)

    ours = rounding_error(w_IO, h_II, s_I, grid=GRID)

    assert ours < 0.5 * rounding_error(w_IO, h_II, torch.ones_like(s_I), grid=GRID)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_clipping_round_by_round_never_raises_the_error(seed: int, sym: bool) -> None:  # noqa: FBT001
    """Every round of exact clipping leaves at most the error before it."""
    w_IO, h_II, _ = layer(seed)
    grid = Grid(bits=4, group_size=32, sym=sym)
    scale_GO, zero_GO = search_scales(w_IO, torch.ones(NUM_INPUTS), grid=grid)

    def errors() -> np.ndarray:
        code_IO = round_codes(w_IO, scale_GO, zero_GO, grid=grid)
        miss = (dequantize(code_IO, scale_GO, zero_GO) - w_IO).double().numpy()
        return np.asarray(np.einsum("io,ij,jo->o", miss, h_II.double().numpy(), miss))

    for _ in range(2):
        before_O = errors()
        refine_clipping(w_IO, h_II, scale_GO, zero_GO, grid=grid)
        # One part in ten thousand of the largest for float32 sums.
        assert (errors() <= before_O + 1e-4 * before_O.max()).all()


def test_one_group_takes_the_best_clipping_of_all() -> None:
    """With one group, exact clipping is the best of the shares, tried one by one."""
    w_IO, h_II, _ = layer(9)
    grid = Grid(bits=4, group_size=NUM_INPUTS, sym=True)
    got = awq(w_IO, h_II, torch.ones(NUM_INPUTS), grid=grid)

    w, h = w_IO.double().numpy(), h_II.double().numpy()
    best = np.full(NUM_OUTPUTS, np.inf)
    reach = np.abs(w).max(0)
    for share in CLIPS:
        scale = (2 * share * reach / 15).astype(np.float16).astype(np.float64)
        miss = (np.clip(np.round(w / scale) + 8, 0, 15) - 8) * scale - w
        best = np.minimum(best, np.einsum("io,ij,jo->o", miss, h, miss))
    assert got.error_O.double().numpy() == pytest.approx(best, rel=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_permuting_outputs_permutes_nothing_else(seed: int) -> None:
    """Outputs are independent: their order changes no code."""
    w_IO, h_II, mean_I = layer(seed)
    order_O = torch.randperm(NUM_OUTPUTS, generator=torch.Generator().manual_seed(seed))
    s_I = search_awq_scales(w_IO, h_II, mean_I, grid=GRID)
    straight = awq(w_IO, h_II, s_I, grid=GRID, clip=False)
    turned = awq(w_IO[:, order_O].contiguous(), h_II, s_I, grid=GRID, clip=False)

    assert torch.equal(straight.code_IO[:, order_O], turned.code_IO)
    assert torch.equal(straight.scale_GO[:, order_O], turned.scale_GO)


def test_permuting_inputs_permutes_the_scales() -> None:
    """With one group for all, channels may stand in any order."""
    w_IO, h_II, mean_I = layer(12)
    grid = Grid(bits=4, group_size=NUM_INPUTS, sym=False)
    order_I = torch.randperm(NUM_INPUTS, generator=torch.Generator().manual_seed(1))
    s_I = search_awq_scales(w_IO, h_II, mean_I, grid=grid)
    turned_I = search_awq_scales(
        w_IO[order_I], h_II[order_I][:, order_I], mean_I[order_I], grid=grid
    )

    assert torch.allclose(s_I[order_I], turned_I, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]))
def test_tied_channels_share_their_scale(seed: int, shared: int) -> None:
    """Both searches keep scales equal where one number must serve."""
    w_IO, h_II, mean_I = layer(seed)
    tie_I = torch.arange(NUM_INPUTS) % (NUM_INPUTS // shared)
    found = (
        search_awq_scales(w_IO, h_II, mean_I, grid=GRID, tie_I=tie_I),
        search_gptq_scales(
            w_IO, h_II, grid=GRID, desc_act=True, damp_percent=0.01, tie_I=tie_I
        ),
    )

    for s_I in found:
        assert torch.equal(
            s_I.view(shared, -1), s_I.view(shared, -1)[:1].expand(shared, -1)
        )


def test_prices_are_what_is_left_of_each_channel() -> None:
    """1 / U_jj^2 is the variance of channel j given those visited after it."""
    _, h_II, _ = layer(5)
    h = h_II.double().numpy() + 0.01 * float(h_II.diagonal().mean()) * np.eye(
        NUM_INPUTS
    )
    expected = [1 / np.linalg.inv(h[j:, j:])[0, 0] for j in range(NUM_INPUTS)]

    got_I = error_prices(h_II, desc_act=False, damp_percent=0.01)

    assert got_I.numpy() == pytest.approx(expected, rel=1e-3)


def test_columns_after_scales_beat_rounding_and_mere_columns_on_average() -> None:
    """Scaled GPTQ leaves less than AWQ, and no more than GPTQ, over many layers."""
    rounded = columns = scaled = 0.0
    for seed in range(8):
        w_IO, h_II, mean_I = layer(seed, spread=4.0)
        s_I = search_awq_scales(w_IO, h_II, mean_I, grid=GRID)
        rounded += float(awq(w_IO, h_II, s_I, grid=GRID).error_O.sum())
        kinds = {"grid": GRID, "desc_act": True, "damp_percent": 0.01}
        s_I = search_gptq_scales(w_IO, h_II, **kinds)  # type: ignore[arg-type]
        problem = scale_problem(w_IO, h_II, s_I)
        scaled += float(gptq(*problem, **kinds).error_O.sum())  # type: ignore[arg-type]
        plain = gptq(w_IO, h_II.clone(), **kinds)  # type: ignore[arg-type]
        columns += float(plain.error_O.sum())

    assert scaled < rounded
    assert scaled <= columns


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 7.0, 1e30, float("inf"), float("nan")]),
        min_size=16,
        max_size=16,
    ),
    st.booleans(),
)
def test_scales_are_usable_whatever_was_wished(
    wished: list[float],
    tied: bool,  # noqa: FBT001
) -> None:
    """Scales are finite, bounded, and 1 where nothing lives."""
    wish_I = torch.tensor(wished)
    live_I = torch.arange(16) % 3 > 0
    tie_I = torch.arange(16) % 8 if tied else None

    s_I = usable_scales(wish_I, live_I, tie_I)

    assert bool(torch.isfinite(s_I).all())
    assert float(s_I.min()) >= 1 / SCALE_LIMIT
    assert float(s_I.max()) <= SCALE_LIMIT
    if not tied:
        dead_I = ~live_I | ~torch.isfinite(wish_I) | (wish_I == 0)
        assert bool((s_I[dead_I] == 1).all())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_scaling_changes_nothing_in_float64(seed: int) -> None:
    """(x / s) (s W) is x W, and the scaled H weighs errors as the layer does."""
    w_IO, h_II, _ = layer(seed)
    generator = torch.Generator().manual_seed(seed)
    s_I = torch.exp(torch.randn(NUM_INPUTS, generator=generator)).double()
    x_TI = torch.randn(8, NUM_INPUTS, generator=generator).double()
    miss_IO = torch.randn(NUM_INPUTS, 4, generator=generator).double()
    scaled_IO, scaled_II = scale_problem(w_IO.double(), h_II.double(), s_I)

    there = torch.trace(
        (miss_IO * s_I[:, None]).T @ scaled_II @ (miss_IO * s_I[:, None])
    )

    assert torch.allclose((x_TI / s_I) @ scaled_IO, x_TI @ w_IO.double(), rtol=1e-9)
    assert torch.allclose(there, torch.trace(miss_IO.T @ h_II.double() @ miss_IO))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_settled_scales_are_those_that_the_stored_factors_apply(
    dtype: torch.dtype,
) -> None:
    """Stored times settled is the factor itself, and the wish is nearly kept."""
    generator = torch.Generator().manual_seed(0)
    factor_I = torch.randn(64, generator=generator).to(dtype).float()
    factor_I[3] = 0
    s_I = torch.exp(torch.randn(64, generator=generator))

    stored_I, real_I = settle_scales(factor_I, s_I, dtype)

    assert torch.allclose(stored_I.float() * real_I, factor_I, rtol=1e-6)
    assert torch.allclose(real_I, s_I, rtol=2**-8)
    assert real_I[3] == s_I[3]


def test_dead_channels_are_left_alone() -> None:
    """A channel never seen, or without weights, keeps the scale 1."""
    w_IO, h_II, mean_I = layer(2, spread=5.0)
    h_II[7], h_II[:, 7], mean_I[7] = 0, 0, 0
    w_IO[9] = 0
    s_I = search_awq_scales(w_IO, h_II, mean_I, grid=GRID)
    t_I = search_gptq_scales(w_IO, h_II, grid=GRID, desc_act=True, damp_percent=0.01)

    assert [float(x) for x in (s_I[7], s_I[9], t_I[7], t_I[9])] == [1.0] * 4
