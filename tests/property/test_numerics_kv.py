"""Laws of eight-bit key and value caches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmi_build.numerics.kv_cache import (
    CacheObserver,
    cache_scale,
    fake_quantize_cache,
)

NUM_HEADS, LENGTH, WIDTH = 3, 16, 8
STEPS = {"int8": 127.0, "fp8": 448.0}


def cache(seed: int, samples: int = 6) -> tuple[Tensor, Tensor]:
    """Keys and values whose heads differ in size."""
    generator = torch.Generator().manual_seed(seed)
    size_K11 = torch.tensor([0.1, 1.0, 20.0]).view(-1, 1, 1)
    shape = (samples, NUM_HEADS, LENGTH, WIDTH)
    key_SKLH = torch.randn(*shape, generator=generator) * size_K11
    return key_SKLH, torch.randn(*shape, generator=generator)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["int8", "fp8"]),
    st.booleans(),
    st.integers(1, 6),
)
def test_scales_bring_the_largest_magnitude_to_the_last_step(
    seed: int,
    dtype: str,
    per_head: bool,  # noqa: FBT001
    chunk: int,
) -> None:
    """A scale is absmax over the steps, however samples were cut into chunks."""
    key_SKLH, value_SKLH = cache(seed)
    observer = CacheObserver(NUM_HEADS)
    for start in range(0, 6, chunk):
        part = slice(start, start + chunk)
        observer.add(key_SKLH[part].bfloat16(), value_SKLH[part].bfloat16())
    axis = (0, 2, 3) if per_head else None
    expected = [
        np.abs(x.bfloat16().double().numpy()).max(axis=axis).reshape(-1) / STEPS[dtype]
        for x in (key_SKLH, value_SKLH)
    ]

    got = observer.scales(dtype, per_head=per_head)

    assert observer.is_finite()
    assert got.key.numpy() == pytest.approx(expected[0], rel=1e-6)
    assert got.value.numpy() == pytest.approx(expected[1], rel=1e-6)
    assert got.shared.tolist() == [max(float(got.key.max()), float(got.value.max()))]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["int8", "fp8"]))
def test_scales_per_head_never_lose_more(seed: int, dtype: str) -> None:
    """What comes back is near what went in; a scale for each head is no worse."""
    key_SKLH, value_SKLH = cache(seed)
    observer = CacheObserver(NUM_HEADS)
    observer.add(key_SKLH, value_SKLH)

    def error(*, per_head: bool) -> float:
        scale = observer.scales(dtype, per_head=per_head).key
        back_SKLH = fake_quantize_cache(key_SKLH, scale, dtype)
        return float((back_SKLH.double() - key_SKLH.double()).square().sum())

    power = float(key_SKLH.double().square().sum())
    # A sixteenth of each number, or half of 1/127 of the largest, at worst.
    assert error(per_head=False) < power * 4e-3
    assert error(per_head=True) <= error(per_head=False) * 1.02


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_headroom_widens_the_range(dtype: str) -> None:
    """With headroom 1.5, a key half as large again as any seen is not clipped."""
    key_SKLH, value_SKLH = cache(1)
    observer = CacheObserver(NUM_HEADS)
    observer.add(key_SKLH, value_SKLH)
    larger_SKLH = key_SKLH * 1.5
    top = larger_SKLH.abs().max()

    wide = observer.scales(dtype, headroom=1.5).key
    tight = observer.scales(dtype).key

    back = fake_quantize_cache(larger_SKLH, wide, dtype).abs().max()
    assert torch.isclose(back, top, rtol=1e-5)
    assert fake_quantize_cache(larger_SKLH, tight, dtype).abs().max() < 0.7 * top


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_a_cache_of_zeros_has_a_scale(dtype: str) -> None:
    """No scale is zero, and zeros come back as zeros."""
    observer = CacheObserver(NUM_HEADS)
    zeros_SKLH = torch.zeros(1, NUM_HEADS, LENGTH, WIDTH)
    observer.add(zeros_SKLH, zeros_SKLH)
    scales = observer.scales(dtype, per_head=True)

    assert float(scales.key.min()) > 0
    assert not fake_quantize_cache(zeros_SKLH, scales.key, dtype).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_key_that_is_no_number_is_told(bad: float) -> None:
    """One NaN among all keys is seen at the end."""
    key_SKLH, value_SKLH = cache(2)
    key_SKLH[3, 1, 2, 0] = bad
    observer = CacheObserver(NUM_HEADS)
    observer.add(key_SKLH, value_SKLH)
    observer.add(*cache(3))

    assert not observer.is_finite()


def test_other_dtypes_are_refused() -> None:
    """A cache is int8 or fp8."""
    with pytest.raises(ValueError, match="int4"):
        cache_scale(torch.ones(1), "int4")
