"""Laws of linears computed with 8-bit products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.numerics.rtn import round_to_nearest
from lmi_build.quantizers import coded as module
from lmi_build.quantizers.coded import coded_linear, multiply

if TYPE_CHECKING:
    import pytest


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(0, 40),
    st.sampled_from([8, 24, 576]),
    st.sampled_from([8, 24, 72]),
    st.booleans(),
)
def test_products_are_those_of_a_kernel(
    seed: int,
    num_tokens: int,
    num_inputs: int,
    num_outputs: int,
    smooths: bool,  # noqa: FBT001
) -> None:
    """In float64: (x / s) rounded per token, times codes, times both scales."""
    generator = torch.Generator().manual_seed(seed)
    w_IO = torch.randn(num_inputs, num_outputs, generator=generator) * 0.05
    x_TI = torch.randn(num_tokens, num_inputs, generator=generator)
    x_TI *= torch.rand(num_inputs, generator=generator) * 10
    s_I = None
    if smooths:
        s_I = 2.0 ** torch.randint(-3, 4, (num_inputs,), generator=generator)
    found = round_to_nearest(w_IO, bits=8, group_size=-1, sym=True)
    code = found.code_IO.double().numpy() - 128
    inverse = np.float32(1) if s_I is None else (1 / s_I.numpy())
    smooth = x_TI.numpy() * inverse
    step = np.abs(smooth).max(axis=1, keepdims=True) / np.float32(127)
    step = step.clip(np.float32(2.0**-40))
    # float32 up to the rounding, so that no tie falls to the other side.
    rounded = np.rint(smooth * (np.float32(1) / step)).astype(np.float64)
    expected = rounded @ code * step * found.scale_GO.double().numpy()

    half = num_outputs // 2
    coded = coded_linear(found, s_I, torch.float32)
    left, right = multiply(
        coded, x_TI[None], (slice(0, half), slice(half, num_outputs))
    )

    assert left.shape == (1, num_tokens, half)
    got = torch.cat((left, right), dim=-1)[0].double().numpy()
    largest = np.abs(expected).max(initial=0)
    assert np.abs(got - expected).max(initial=0) <= 1e-6 * largest


def test_without_integer_instructions_the_products_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole numbers in float32 are exact below 2^24, whatever multiplies them."""
    generator = torch.Generator().manual_seed(0)
    w_IO = torch.randn(576, 96, generator=generator)
    x_TI = torch.randn(33, 576, generator=generator)
    found = round_to_nearest(w_IO, bits=8, group_size=-1, sym=True)
    whole = multiply(coded_linear(found, None, x_TI.dtype), x_TI, (slice(None),))[0]
    monkeypatch.setattr(module, "multiplies_integers", lambda _device: False)
    floats = coded_linear(found, None, x_TI.dtype)

    assert floats.code_IO.dtype == torch.float32
    assert torch.equal(multiply(floats, x_TI, (slice(None),))[0], whole)


def test_later_changes_of_the_stored_scales_do_not_reach_the_product() -> None:
    """Smoothing divides a stored scale in place; the walk goes on unsmoothed."""
    w_IO, x_TI = torch.eye(8), torch.ones(2, 8)
    found = round_to_nearest(w_IO, bits=8, group_size=-1, sym=True)
    coded = coded_linear(found, None, x_TI.dtype)
    before = multiply(coded, x_TI, (slice(None),))[0]
    found.scale_GO.div_(2)

    assert torch.equal(multiply(coded, x_TI, (slice(None),))[0], before)
