"""Laws of what calibration remembers, however tokens come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmi_build.numerics.activation_steps import fake_quantize_per_token
from lmi_build.numerics.awq import search_awq_scales
from lmi_build.numerics.fp8 import quantize_fp8
from lmi_build.numerics.grids import Grid
from lmi_build.numerics.observers import ChannelObserver, HessianObserver
from lmi_build.numerics.rtn import round_to_nearest
from lmi_build.numerics.smooth import smoothing_scales

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

WIDTH = 24


def tokens(seed: int, count: int) -> Tensor:
    """Inputs in bfloat16, of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    x_TI = torch.randn(count, WIDTH, generator=generator)
    return (x_TI * torch.exp(torch.randn(WIDTH, generator=generator) * 3)).bfloat16()


def cut(x_TI: Tensor, sizes: int | list[int]) -> tuple[Tensor, ...]:
    """Chunks of tokens."""
    return tuple(torch.split(x_TI, sizes))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 40), min_size=1, max_size=8),
    st.sampled_from([1, 7, 16, 1000]),
)
def test_chunks_change_no_statistic(
    seed: int, chunks: list[int], max_rows: int
) -> None:
    """Chunked as you like: the same magnitudes, means and rows, bit for bit."""
    x_TI = tokens(seed, sum(chunks))
    whole, parts = (ChannelObserver(WIDTH, max_rows=max_rows) for _ in range(2))
    whole.add(x_TI)
    for chunk_TI in cut(x_TI, chunks):
        parts.add(chunk_TI)

    one, many = whole.stats(), parts.stats()

    assert one.num_tokens == many.num_tokens == sum(chunks)
    assert torch.equal(one.absmax_I, many.absmax_I)
    assert torch.equal(one.mean_abs_I, many.mean_abs_I)
    assert torch.equal(one.sample_RI, many.sample_RI)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.sampled_from([1, 7, 16, 1000]),
    st.randoms(use_true_random=False),
)
def test_the_order_of_chunks_changes_no_statistic(
    seed: int, chunks: list[int], max_rows: int, random: Random
) -> None:
    """Chunks that say where they begin may come in any order."""
    x_TI = tokens(seed, sum(chunks))
    whole, parts = (
        ChannelObserver(WIDTH, max_rows=max_rows, means=False) for _ in range(2)
    )
    whole.add(x_TI)
    firsts = [sum(chunks[:number]) for number in range(len(chunks))]
    shuffled = list(zip(firsts, chunks, strict=True))
    random.shuffle(shuffled)
    for first, count in shuffled:
        parts.add(x_TI[first : first + count], first=first)

    one, many = whole.stats(), parts.stats()

    assert one.num_tokens == many.num_tokens
    assert torch.equal(one.absmax_I, many.absmax_I)
    assert torch.equal(one.sample_RI, many.sample_RI)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([torch.bfloat16, torch.float16]))
def test_largest_magnitudes_of_16_bits_are_exact(seed: int, dtype: torch.dtype) -> None:
    """They are compared as integers, and are those of the numbers all the same."""
    x_TI = (tokens(seed, 30) * 2.0 ** (seed % 30 - 20)).to(dtype)
    x_TI[seed % 30, 2] = -torch.inf if seed % 3 else -0.0
    observer = ChannelObserver(WIDTH, means=False)
    observer.add(x_TI)

    got = observer.stats().absmax_I

    assert torch.equal(got, x_TI.float().abs().amax(dim=0))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.integers(1, 64))
def test_rows_are_evenly_spaced(count: int, max_rows: int) -> None:
    """Rows are those whose number a power of two divides, the smallest that fits."""
    observer = ChannelObserver(WIDTH, max_rows=max_rows)
    x_TI = tokens(0, count)
    for chunk_TI in cut(x_TI, 13):
        observer.add(chunk_TI)
    stride = 1
    while -(-count // stride) > max_rows:
        stride *= 2

    assert torch.equal(observer.stats().sample_RI, x_TI[::stride])


def test_statistics_are_those_of_numpy() -> None:
    """Largest and mean magnitude, in float64."""
    x_TI = tokens(3, 100)
    observer = ChannelObserver(WIDTH)
    observer.add(x_TI)
    x = np.abs(x_TI.double().numpy())

    got = observer.stats()

    assert got.absmax_I.numpy() == pytest.approx(x.max(0), rel=1e-7)
    assert got.mean_abs_I.numpy() == pytest.approx(x.mean(0), rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("row", [0, 57, 99])
def test_one_input_that_is_no_number_is_told(bad: float, row: int) -> None:
    """Both observers know it at the end, wherever it stood."""
    x_TI = tokens(4, 100)
    x_TI[row, 5] = bad
    channels, products = ChannelObserver(WIDTH), HessianObserver(WIDTH, max_tokens=20)
    for chunk_TI in cut(x_TI, 20):
        channels.add(chunk_TI)
        products.add(chunk_TI)

    assert not channels.is_finite()
    assert not products.is_finite()


def test_an_observer_that_saw_nothing_says_so() -> None:
    """No token: zeros, no rows, and nothing divides by zero."""
    observer = ChannelObserver(WIDTH)
    observer.add(tokens(0, 0))
    stats = observer.stats()

    assert stats.num_tokens == 0
    assert stats.sample_RI.shape == (0, WIDTH)
    assert not stats.mean_abs_I.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [5, 288, 600])
def test_the_product_is_exact_to_float32(dtype: torch.dtype, width: int) -> None:
    """X' X / T for any input dtype; the diagonal weighs no less than what it sums."""
    generator = torch.Generator().manual_seed(width)
    x_TI = torch.randn(96, width, generator=generator).to(dtype)
    observer = HessianObserver(width, max_tokens=32)
    for chunk_TI in cut(x_TI, 32):
        observer.add(chunk_TI)
    x = x_TI.double().numpy()

    mean_II = observer.mean()

    assert torch.equal(mean_II, mean_II.T)
    # float32 sums of 96 products of numbers near one.
    assert np.abs(mean_II.double().numpy() - x.T @ x / 96).max() < 1e-5


def results(make: Callable[[], list[Tensor]], threads: int) -> list[Tensor]:
    """What is computed with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return make()
    finally:
        torch.set_num_threads(before)


def test_what_is_not_a_product_does_not_depend_on_threads() -> None:
    """Rounding, statistics, fp8 and smoothing scales: same bytes on 1 and 2 threads."""
    generator = torch.Generator().manual_seed(0)
    w_IO = torch.randn(512, 384, generator=generator)
    x_TI = torch.randn(256, 512, generator=generator).bfloat16()

    def make() -> list[Tensor]:
        four = round_to_nearest(w_IO, bits=4, group_size=64, sym=False)
        eight = round_to_nearest(w_IO, bits=8, group_size=-1, sym=True)
        small = quantize_fp8(w_IO, per_channel=True)
        observer = ChannelObserver(512)
        observer.add(x_TI)
        stats = observer.stats()
        return [
            four.code_IO,
            four.scale_GO,
            eight.code_IO,
            small.code_IO.view(torch.uint8),
            small.scale_GO,
            stats.absmax_I,
            stats.mean_abs_I,
            smoothing_scales(stats.absmax_I, w_IO, alpha=0.5),
            fake_quantize_per_token(x_TI),
        ]

    pairs = zip(results(make, 1), results(make, 2), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_the_same_threads_give_the_same_bytes() -> None:
    """Products and the searches made of them repeat themselves exactly."""
    generator = torch.Generator().manual_seed(1)
    x_TI = torch.randn(512, 320, generator=generator).bfloat16()
    w_IO = torch.randn(320, 192, generator=generator)

    def make() -> list[Tensor]:
        observer = HessianObserver(320, max_tokens=128)
        for chunk_TI in cut(x_TI, 128):
            observer.add(chunk_TI)
        h_II = observer.mean()
        grid = Grid(bits=4, group_size=64, sym=False)
        mean_I = x_TI.float().abs().mean(dim=0)
        return [h_II, search_awq_scales(w_IO, h_II, mean_I, grid=grid)]

    pairs = zip(results(make, 2), results(make, 2), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
