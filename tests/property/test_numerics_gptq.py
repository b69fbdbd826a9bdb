"""Laws of GPTQ, held against a derivation of its own in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmi_build.numerics.gptq import (
    NotPositiveDefinite,
    gptq,
    hessian_error,
    inverse_factor,
    walk,
)
from lmi_build.numerics.grids import MIN_SCALE, Grid, dequantize, search_scales
from lmi_build.numerics.observers import HessianObserver
from lmi_build.numerics.rtn import round_to_nearest

NUM_INPUTS, NUM_OUTPUTS, NUM_TOKENS = 128, 24, 512


def layer(seed: int) -> tuple[Tensor, Tensor]:
    """Weights and the H of inputs that are correlated and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    w_IO = torch.randn(NUM_INPUTS, NUM_OUTPUTS, generator=generator) * 0.05
    mix_II = torch.randn(NUM_INPUTS, NUM_INPUTS, generator=generator)
    mix_II *= torch.rand(NUM_INPUTS, generator=generator) ** 2
    x_TI = torch.randn(NUM_TOKENS, NUM_INPUTS, generator=generator) @ mix_II
    return w_IO, x_TI.T @ x_TI / NUM_TOKENS


def error(
    w_IO: Tensor, h_II: Tensor, code: Tensor, scale: Tensor, zero: Tensor
) -> float:
    miss_IO = w_IO.double() - dequantize(code, scale, zero).double()
    return float(hessian_error(miss_IO, h_II.double()).sum())


def greedy_float64(
    w_IO: Tensor,
    h_II: Tensor,
    scale_GO: Tensor,
    zero_GO: Tensor,
    order: list[int],
    grid: Grid,
) -> np.ndarray:
    """Optimal brain quantization by its definition: invert what is left, each step."""
    w = w_IO.double().numpy().copy()
    h = h_II.double().numpy()
    code = np.zeros_like(w)
    for at, j in enumerate(order):
        left = order[at:]
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        group = j // grid.group_size
        scale, zero = scale_GO[group].double().numpy(), zero_GO[group].double().numpy()
        code[j] = np.clip(np.round(w[j] / scale) + zero, 0, grid.max_code)
        miss = w[j] - (code[j] - zero) * scale
        w[left] -= np.outer(inverse[:, 0] / inverse[0, 0], miss)
    return code


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("sym", [False, True])
def test_walk_is_optimal_brain_quantization(desc_act: bool, sym: bool) -> None:  # noqa: FBT001
    """
    The blocked walk takes the codes of the definition.

    float32 may round a tie otherwise, after which later codes of that output differ;
    at most one output in twelve may.
    """
    w_IO, h_II = layer(1)
    grid = Grid(bits=4, group_size=32, sym=sym)
    order = torch.arange(NUM_INPUTS)
    if desc_act:
        order = torch.argsort(h_II.diagonal(), descending=True, stable=True)
    damped_II = h_II + 0.01 * float(h_II.diagonal().mean()) * torch.eye(NUM_INPUTS)
    u_PP, _ = inverse_factor(h_II.clone(), order, 0.01)
    scale, zero = search_scales(w_IO, torch.ones(NUM_INPUTS), grid=grid)
    code_PO, loss_O = walk(w_IO[order], u_PP, scale, zero, order // 32, grid=grid)
    code = code_PO[torch.argsort(order)].double().numpy()

    expected = greedy_float64(w_IO, damped_II, scale, zero, order.tolist(), grid)

    same = (code == expected).all(axis=0)
    assert same.sum() >= NUM_OUTPUTS - 2
    miss_IO = w_IO - dequantize(torch.from_numpy(code), scale, zero)
    assert torch.allclose(loss_O, hessian_error(miss_IO, damped_II), rtol=1e-3)


@settings(max_examples=15)
@given(
    st.integers(0, 10_000),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([32, 64, 128]),
    st.booleans(),
    st.booleans(),
)
def test_gptq_is_never_worse_than_rounding(
    seed: int,
    bits: int,
    group_size: int,
    sym: bool,  # noqa: FBT001
    desc_act: bool,  # noqa: FBT001
) -> None:
    """In the norm of H, GPTQ's error is at most that of rounding to nearest."""
    w_IO, h_II = layer(seed)
    grid = Grid(bits=bits, group_size=group_size, sym=sym)
    ours = gptq(w_IO, h_II.clone(), grid=grid, desc_act=desc_act, damp_percent=0.01)
    plain = round_to_nearest(w_IO, bits=bits, group_size=group_size, sym=sym)

    assert float(ours.error_O.sum()) <= error(
        w_IO, h_II, plain.code_IO, plain.scale_GO, plain.zero_GO
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.booleans())
def test_outputs_walked_in_parts_are_those_of_the_whole(
    seed: int,
    num_parts: int,
    desc_act: bool,  # noqa: FBT001
) -> None:
    """Each output is walked by itself: the same scales, and codes but for ties."""
    w_IO, h_II = layer(seed)
    grid = Grid(bits=4, group_size=32, sym=True)
    ends = {
        parts: gptq(
            w_IO,
            h_II.clone(),
            grid=grid,
            desc_act=desc_act,
            damp_percent=0.01,
            num_parts=parts,
        )
        for parts in (1, num_parts)
    }
    whole, parted = ends[1], ends[num_parts]

    assert torch.equal(whole.scale_GO, parted.scale_GO)
    assert torch.equal(whole.zero_GO, parted.zero_GO)
    # Sums of products may be taken in another order, which only decides ties.
    assert int((whole.code_IO != parted.code_IO).sum()) <= NUM_INPUTS // 16
    assert parted.error_O.shape == whole.error_O.shape
    assert torch.allclose(whole.error_O, parted.error_O, rtol=0.02, atol=1e-6)


def test_reported_error_is_the_error_of_what_is_stored() -> None:
    """`error_O` is diag(D' H D) of the stored codes, scales and zero points."""
    w_IO, h_II = layer(3)
    grid = Grid(bits=4, group_size=64, sym=True)
    got = gptq(w_IO, h_II.clone(), grid=grid, desc_act=True, damp_percent=0.01)
    stored = got.scale_GO.half().float()

    assert torch.equal(stored, got.scale_GO)
    expected = error(w_IO, h_II, got.code_IO, stored, got.zero_GO)
    assert float(got.error_O.sum()) == pytest.approx(expected, rel=1e-4)


def test_dampening_grows_until_h_can_be_factored() -> None:
    """An indefinite H is factored with more dampening than was asked for."""
    h_II = torch.eye(64)
    h_II[0, 1] = h_II[1, 0] = 1.05

    u_PP, share = inverse_factor(h_II, torch.arange(64), 0.001)

    assert share == pytest.approx(0.1)
    assert bool(torch.isfinite(u_PP).all())


def test_a_negative_h_is_refused() -> None:
    """What no dampening can mend is an error."""
    h_II = torch.eye(8)
    h_II[0, 1] = h_II[1, 0] = 1e9

    with pytest.raises(NotPositiveDefinite):
        inverse_factor(h_II, torch.arange(8), 0.01)


def test_channels_never_seen_are_rounded() -> None:
    """A channel whose input was always zero keeps its nearest code."""
    w_IO, h_II = layer(5)
    h_II[7], h_II[:, 7] = 0, 0
    grid = Grid(bits=8, group_size=64, sym=True)
    got = gptq(w_IO, h_II.clone(), grid=grid, desc_act=True, damp_percent=0.01)

    back_IO = dequantize(got.code_IO, got.scale_GO, got.zero_GO)
    assert float((back_IO[7] - w_IO[7]).abs().max()) <= float(got.scale_GO[0].max())


@given(st.sampled_from([2, 3, 4, 8]), st.booleans(), st.floats(1e25, 3e38))
def test_weights_beyond_squares_have_no_scale(
    bits: int,
    sym: bool,  # noqa: FBT001
    value: float,
) -> None:
    """NaN, whatever lay in memory before; the columns beside keep theirs."""
    w_IO = torch.randn(64, 4, generator=torch.Generator().manual_seed(bits))
    wrong_IO = w_IO.clone()
    wrong_IO[5, 2] = value
    grid = Grid(bits=bits, group_size=32, sym=sym)
    plain, _ = search_scales(w_IO, None, grid=grid)
    scale, zero = search_scales(wrong_IO, None, grid=grid)

    assert torch.isnan(scale[0, 2])
    plain[0, 2] = scale[0, 2] = 0
    assert torch.equal(scale, plain)
    assert bool((zero >= 1).all())


def test_zero_weights_stay_zero() -> None:
    """A group of zeros gets a usable scale and comes back as zeros."""
    _, h_II = layer(6)
    w_IO = torch.zeros(NUM_INPUTS, NUM_OUTPUTS)
    for sym in (False, True):
        grid = Grid(bits=4, group_size=32, sym=sym)
        got = gptq(w_IO, h_II.clone(), grid=grid, desc_act=True, damp_percent=0.01)

        assert float(got.scale_GO.min()) >= MIN_SCALE
        assert not dequantize(got.code_IO, got.scale_GO, got.zero_GO).any()


@given(st.integers(1, 5), st.sampled_from([8, 200, 1100]))
@settings(max_examples=8)
def test_observer_sums_the_product(chunks: int, width: int) -> None:
    """Chunks add up to X' X / T, whatever the blocks of the triangle are."""
    x_TI = torch.randn(chunks * 16, width, generator=torch.Generator().manual_seed(0))
    observer = HessianObserver(width, max_tokens=16)
    for chunk in x_TI.view(-1, 16, width):
        observer.add(chunk)
    expected = (x_TI.double().T @ x_TI.double()) / len(x_TI)

    mean_II = observer.mean()

    assert torch.equal(mean_II, mean_II.T)
    # float32 sums of at most 80 products of numbers near one.
    assert torch.allclose(mean_II.double(), expected, atol=1e-5)
