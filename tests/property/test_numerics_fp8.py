"""Laws of eight-bit floats, held against all 256 codes written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.numerics.fp8 import (
    FP8,
    FP8_MAX,
    cast_fp8,
    dequantize_fp8,
    fake_quantize_fp8_per_token,
    fake_quantize_fp8_static,
    fp8_scale,
    quantize_fp8,
)

FINITE = st.floats(-600, 600, allow_nan=False, width=32)


def code_value(code: int) -> float:
    """The number of an E4M3 code, from its bits."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


VALUES = np.array([code_value(code) for code in range(127)])


def nearest(x: float) -> float:
    """The nearest magnitude of all codes, the even code on a tie, by enumeration."""
    gaps = np.abs(VALUES - min(abs(x), FP8_MAX))
    ties = np.flatnonzero(gaps == gaps.min())
    code = next((at for at in ties if at % 2 == 0), ties[0])
    return math.copysign(float(VALUES[code]), x)


def test_every_code_means_what_its_bits_say() -> None:
    """All 256 codes have the value of the format's definition."""
    codes = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    expected = torch.tensor([code_value(code) for code in range(256)])

    assert torch.equal(codes.isnan(), expected.isnan())
    assert torch.equal(codes.nan_to_num(), expected.nan_to_num())


@settings(max_examples=300)
@given(FINITE)
def test_a_cast_takes_the_nearest_code(x: float) -> None:
    """Round to nearest, ties to even, saturating at 448."""
    assert float(cast_fp8(torch.tensor([x])).float()) == nearest(x)


def test_a_cast_takes_the_even_code_on_every_tie() -> None:
    """The middle between any two neighbours goes to the even one."""
    middles = (VALUES[1:] + VALUES[:-1]) / 2
    got = cast_fp8(torch.tensor(middles, dtype=torch.float32)).float()

    assert got.tolist() == [nearest(float(x)) for x in middles]


@pytest.mark.parametrize("x", [449.0, 464.0, 480.0, 1e30, math.inf])
def test_a_cast_saturates(x: float) -> None:
    """What lies beyond 448 becomes 448, never NaN."""
    got = cast_fp8(torch.tensor([x, -x]))

    assert got.float().tolist() == [448.0, -448.0]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e4]),
)
def test_weights_are_never_nan_and_scales_are_stored_exactly(
    seed: int,
    per_channel: bool,  # noqa: FBT001
    search: bool,  # noqa: FBT001
    scale_dtype: str,
    size: float,
) -> None:
    """Zero, tiny and large channels: finite codes, usable scales, small errors."""
    generator = torch.Generator().manual_seed(seed)
    w_IO = torch.randn(32, 8, generator=generator) * size
    w_IO[:, 3] = 0
    got = quantize_fp8(
        w_IO, per_channel=per_channel, search=search, scale_dtype=scale_dtype
    )
    scale_GO = got.scale_GO
    back_IO = dequantize_fp8(got.code_IO, scale_GO)

    assert got.code_IO.dtype == FP8
    assert bool(torch.isfinite(got.code_IO.float()).all())
    assert bool(torch.isfinite(scale_GO).all())
    assert float(scale_GO.min()) > 0
    assert torch.equal(scale_GO.to(getattr(torch, scale_dtype)).float(), scale_GO)
    assert not back_IO[:, 3].any()
    if not per_channel:
        assert bool((scale_GO == scale_GO[0, 0]).all())
    if size == 1.0 and not search:
        # Half a step of three bits of mantissa, or of the smallest subnormal.
        bound_IO = torch.maximum(w_IO.abs() / 16, scale_GO * 2.0**-10) * 1.01
        assert bool(((back_IO - w_IO).abs() <= bound_IO).all())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_a_searched_scale_is_never_worse(seed: int, per_channel: bool) -> None:  # noqa: FBT001
    """Searching lowers the weighted error or keeps absmax / 448."""
    generator = torch.Generator().manual_seed(seed)
    w_IO = torch.randn(64, 8, generator=generator)
    h_II = torch.diag(torch.rand(64, generator=generator) + 0.01)
    kinds = {"per_channel": per_channel, "h_II": h_II}

    plain = quantize_fp8(w_IO, **kinds)  # type: ignore[arg-type]
    searched = quantize_fp8(w_IO, search=True, **kinds)  # type: ignore[arg-type]

    assert float(searched.error_O.sum()) <= float(plain.error_O.sum()) * (1 + 1e-6)


def test_the_error_reported_is_that_of_the_stored_codes() -> None:
    """`error_O` is diag(D' H D) of what is stored, in float64."""
    generator = torch.Generator().manual_seed(0)
    w_IO = torch.randn(64, 8, generator=generator)
    x_TI = torch.randn(256, 64, generator=generator)
    got = quantize_fp8(w_IO, per_channel=True, h_II=x_TI.T @ x_TI / 256)

    back = dequantize_fp8(got.code_IO, got.scale_GO).double().numpy()
    miss = x_TI.double().numpy() @ (back - w_IO.double().numpy())
    assert got.error_O.numpy() == pytest.approx((miss**2).mean(0), rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_activations_per_token_use_the_whole_range(seed: int) -> None:
    """Each token's largest number comes back; a token of zeros stays zeros."""
    x_TI = torch.randn(8, 32, generator=torch.Generator().manual_seed(seed)) * 50
    x_TI[0] = 0
    got_TI = fake_quantize_fp8_per_token(x_TI)

    assert not got_TI[0].any()
    assert torch.allclose(got_TI.abs().amax(1), x_TI.abs().amax(1), rtol=1e-6)
    assert torch.equal(
        fake_quantize_fp8_static(x_TI[1:2], fp8_scale(x_TI[1].abs().max())),
        got_TI[1:2],
    )
