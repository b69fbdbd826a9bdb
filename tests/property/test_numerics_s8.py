"""Laws of rounding to int8 by output channel."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.numerics.s8 import quantize_s8, rounded_s8

FLOATS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """A linear of any size, scale and float type, with some rows of zeros."""
    num_outputs, num_inputs = draw(st.integers(1, 9)), draw(st.integers(1, 17))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    w_OI = torch.randn(num_outputs, num_inputs, generator=generator)
    w_OI *= 10.0 ** draw(st.integers(-4, 3))
    if draw(st.booleans()):
        w_OI[0] = 0
    return w_OI.to(draw(FLOATS))


@settings(max_examples=100)
@given(w_OI=weights())
def test_codes_are_those_of_float64(w_OI: torch.Tensor) -> None:
    """But for a tie that float32 and float64 break apart, by one code."""
    code_OI, scale_O = quantize_s8(w_OI)
    exact_OI = w_OI.double().numpy()
    step_O = np.abs(exact_OI).max(axis=1) / 127
    ratio_OI = exact_OI / np.where(step_O > 0, step_O, 1.0)[:, None]
    miss_OI = np.abs(code_OI.numpy() - ratio_OI)

    assert code_OI.dtype == torch.int8
    assert np.all(miss_OI <= 0.5 + 1e-4)
    assert np.allclose(scale_O.numpy(), step_O, rtol=1e-6)


@settings(max_examples=100)
@given(w_OI=weights())
def test_no_weight_moves_by_more_than_half_a_step(w_OI: torch.Tensor) -> None:
    """The largest of a row stays, and zeros stay zero."""
    wide_OI = w_OI.float()
    error_OI = (rounded_s8(w_OI) - wide_OI).abs()
    step_O1 = wide_OI.abs().amax(dim=1, keepdim=True) / 127

    assert torch.all(error_OI <= step_O1 * (0.5 + 1e-4))
    largest = wide_OI.abs() == wide_OI.abs().amax(dim=1, keepdim=True)
    assert torch.all(error_OI[largest] <= step_O1.expand_as(error_OI)[largest] * 1e-4)
    assert torch.all(rounded_s8(w_OI)[wide_OI == 0] == 0)


@settings(max_examples=50)
@given(w_OI=weights())
def test_rounding_twice_is_rounding_once(w_OI: torch.Tensor) -> None:
    """The rounded weights have the same codes."""
    first, _ = quantize_s8(w_OI)
    again, _ = quantize_s8(rounded_s8(w_OI))

    assert torch.equal(first, again)


def test_ties_go_to_the_even_code() -> None:
    """127 and halves: the scale is one exactly."""
    w_OI = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0]])
    code_OI, scale_O = quantize_s8(w_OI)

    assert code_OI.tolist() == [[127, 0, 2, 2, 0, -2, -127]]
    assert scale_O.tolist() == [1.0]
