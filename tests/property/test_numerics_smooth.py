"""Laws of SmoothQuant, held against a derivation of its own in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmi_build.numerics.activation_steps import (
    fake_quantize_per_token,
    fake_quantize_static,
    static_scale,
)
from lmi_build.numerics.scaling import SCALE_LIMIT, scale_problem
from lmi_build.numerics.smooth import (
    ALPHAS,
    expected_noise,
    search_smoothing,
    smoothing_scales,
)

NUM_INPUTS, NUM_OUTPUTS, NUM_TOKENS = 64, 32, 256


def layer(seed: int, *, outlier: float = 30.0) -> tuple[Tensor, Tensor]:
    """Weights and inputs of which every sixteenth channel is an outlier."""
    generator = torch.Generator().manual_seed(seed)
    w_IO = torch.randn(NUM_INPUTS, NUM_OUTPUTS, generator=generator) * 0.05
    x_TI = torch.randn(NUM_TOKENS, NUM_INPUTS, generator=generator)
    x_TI[:, ::16] *= outlier
    return w_IO, x_TI


def w8a8_error(w_IO: Tensor, x_TI: Tensor, s_I: Tensor, *, static: bool) -> float:
    """The mean squared error of a smoothed W8A8 layer, in float64."""
    w = w_IO.double().numpy() * s_I.double().numpy()[:, None]
    x = x_TI.double().numpy() / s_I.double().numpy()
    weight_step = np.abs(w).max(0) / 127.5
    w_back = np.clip(np.round(w / weight_step), -128, 127) * weight_step
    reach = np.abs(x).max() if static else np.abs(x).max(1, keepdims=True)
    x_back = np.clip(np.round(x / (reach / 127)), -128, 127) * (reach / 127)
    return float(((x_back @ w_back - x @ w) ** 2).sum(1).mean())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_scales_are_those_of_the_paper(alpha: float) -> None:
    """Scales are max|x|^a / max|w|^(1 - a), up to one common factor."""
    w_IO, x_TI = layer(0)
    x, w = x_TI.double().numpy(), w_IO.double().numpy()
    expected = np.abs(x).max(0) ** alpha / np.abs(w).max(1) ** (1 - alpha)
    expected /= np.sqrt(expected.max() * expected.min())

    s_I = smoothing_scales(x_TI.abs().amax(dim=0), w_IO, alpha=alpha)

    assert s_I.numpy() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_smoothing_changes_nothing_in_float64(seed: int, alpha: float) -> None:
    """(x / s) (s W) is x W."""
    w_IO, x_TI = layer(seed)
    s_I = smoothing_scales(x_TI.abs().amax(dim=0), w_IO, alpha=alpha).double()
    eye_II = torch.eye(NUM_INPUTS, dtype=torch.float64)
    scaled_IO, _ = scale_problem(w_IO.double(), eye_II, s_I)

    there_TO = (x_TI.double() / s_I) @ scaled_IO

    assert torch.allclose(there_TO, x_TI.double() @ w_IO.double(), rtol=1e-9)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("alpha", [None, 0.2, 0.5, 0.8])
def test_the_noise_model_tells_the_error(
    seed: int,
    static: bool,  # noqa: FBT001
    alpha: float | None,
) -> None:
    """The expected error is the real one within a fifth, smoothed or not."""
    w_IO, x_TI = layer(seed)
    absmax_I = x_TI.abs().amax(dim=0)
    s_I = torch.ones(NUM_INPUTS)
    if alpha is not None:
        s_I = smoothing_scales(absmax_I, w_IO, alpha=alpha)
    got = expected_noise(
        w_IO.abs(),
        x_TI,
        torch.ones(NUM_TOKENS, 1),
        x_TI.square().mean(dim=0),
        w_IO.square().sum(dim=1),
        s_I,
        step=float((absmax_I / s_I).amax()) / 127 if static else None,
    )

    # Noise of 64 x 32 weights rounded once: 20% is four standard errors.
    assert sum(got) == pytest.approx(
        w8a8_error(w_IO, x_TI, s_I, static=static), rel=0.2
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_the_search_takes_a_strength_near_the_best(
    seed: int,
    static: bool,  # noqa: FBT001
) -> None:
    """By the real error, the choice is near the best strength, far below none."""
    w_IO, x_TI = layer(seed)
    absmax_I = x_TI.abs().amax(dim=0)
    found = search_smoothing(w_IO, x_TI, absmax_I, static=static)
    plain = w8a8_error(w_IO, x_TI, torch.ones(NUM_INPUTS), static=static)
    best = min(
        w8a8_error(
            w_IO, x_TI, smoothing_scales(absmax_I, w_IO, alpha=alpha), static=static
        )
        for alpha in ALPHAS
    )

    ours = w8a8_error(w_IO, x_TI, found.s_I, static=static)

    assert found.alpha is not None
    assert found.error <= found.plain_error
    assert ours <= 1.25 * best
    assert ours <= 0.5 * plain


def test_a_strength_that_was_given_is_taken() -> None:
    """`alpha` is not searched where the recipe names it, however bad."""
    w_IO, x_TI = layer(1, outlier=1.0)
    absmax_I = x_TI.abs().amax(dim=0)

    found = search_smoothing(w_IO, x_TI, absmax_I, static=False, alpha=1.0)

    assert found.alpha == 1.0
    assert torch.equal(found.s_I, smoothing_scales(absmax_I, w_IO, alpha=1.0))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]))
def test_tied_channels_share_their_scale(seed: int, shared: int) -> None:
    """Scales are equal where one number must serve, and no peak is forgotten."""
    w_IO, x_TI = layer(seed)
    tie_I = torch.arange(NUM_INPUTS) // shared
    found = search_smoothing(
        w_IO, x_TI, x_TI.abs().amax(dim=0), static=False, tie_I=tie_I
    )

    groups = found.s_I.view(-1, shared)
    assert torch.equal(groups, groups[:, :1].expand(-1, shared))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_the_order_of_channels_changes_nothing(
    seed: int,
    static: bool,  # noqa: FBT001
) -> None:
    """Permuted channels get permuted scales."""
    w_IO, x_TI = layer(seed)
    order_I = torch.randperm(NUM_INPUTS, generator=torch.Generator().manual_seed(seed))
    here = search_smoothing(w_IO, x_TI, x_TI.abs().amax(dim=0), static=static)
    there = search_smoothing(
        w_IO[order_I],
        x_TI[:, order_I],
        x_TI[:, order_I].abs().amax(dim=0),
        static=static,
    )

    assert here.alpha == there.alpha
    # Sums over rows and tokens are taken in another order.
    assert torch.allclose(here.s_I[order_I], there.s_I, rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e20, 1e38])
def test_scales_are_usable_at_any_size(size: float) -> None:
    """Zero, tiny and huge channels leave finite scales within bounds."""
    w_IO, x_TI = layer(3)
    x_TI[:, 5] = size
    w_IO[6] = size
    for alpha in (0.0, 0.5, 1.0):
        s_I = smoothing_scales(x_TI.abs().amax(dim=0), w_IO, alpha=alpha)

        assert bool(torch.isfinite(s_I).all())
        assert float(s_I.min()) >= 1 / SCALE_LIMIT
        assert float(s_I.max()) <= SCALE_LIMIT


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_fake_quantization_is_rounding_to_127_steps(seed: int) -> None:
    """Per token: codes are whole, reach 127 and are the nearest."""
    _, x_TI = layer(seed)
    x_TI[0] = 0
    x, got = x_TI.double().numpy(), fake_quantize_per_token(x_TI).double().numpy()
    step = np.abs(x).max(1, keepdims=True) / 127
    assert not got[0].any()
    code = got[1:] / step[1:]

    assert np.abs(code - np.round(code)).max() < 1e-4
    assert np.abs(code).max(1) == pytest.approx(127, abs=1e-4)
    assert (np.abs(got[1:] - x[1:]) <= step[1:] * 0.5001).all()


def test_static_codes_saturate() -> None:
    """What lies beyond the range becomes -128 or 127."""
    x_TI = torch.tensor([[-1000.0, -0.6, 0.5, 1.5, 1000.0]])

    got_TI = fake_quantize_static(x_TI, 1.0)

    assert got_TI.tolist() == [[-128.0, -1.0, 0.0, 2.0, 127.0]]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_a_searched_static_step_is_no_worse_than_the_full_range(seed: int) -> None:
    """On the sample, the step found leaves at most the error of absmax / 127."""
    generator = torch.Generator().manual_seed(seed)
    x_TI = torch.randn(NUM_TOKENS, 16, generator=generator) ** 5
    absmax = float(x_TI.abs().max())

    step = static_scale(x_TI, absmax)

    def error(at: float) -> float:
        x = x_TI.double().numpy()
        return float(((np.clip(np.round(x / at), -128, 127) * at - x) ** 2).sum())

    assert step <= absmax / 127 * (1 + 1e-6)
    assert error(step) <= error(absmax / 127) * (1 + 1e-5)
