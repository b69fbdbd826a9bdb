"""Laws of factoring in place, held against float64."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmi_build.numerics.triangular import SLAB_ROWS, factor, invert, mirror, reorder

# Within one slab, at its edge, and over several with a rest.
SIZES = st.sampled_from([1, 5, SLAB_ROWS - 1, SLAB_ROWS, SLAB_ROWS + 1, 600])
SEEDS = st.integers(0, 10_000)


def positive(size: int, seed: int) -> Tensor:
    """A well-conditioned product X' X with channels of different size."""
    generator = torch.Generator().manual_seed(seed)
    x_TN = torch.randn(2 * size + 8, size, generator=generator)
    x_TN *= 0.2 + torch.rand(size, generator=generator)
    h_NN = x_TN.T @ x_TN / len(x_TN)
    mirror(h_NN)
    return h_NN


@settings(max_examples=12, deadline=None)
@given(SIZES, SEEDS)
def test_the_factor_of_the_inverse(size: int, seed: int) -> None:
    """`factor`, then `invert`, is the upper U with U' U = H^-1 and zeros below."""
    h_NN = positive(size, seed)
    expected = np.linalg.inv(h_NN.double().numpy())

    assert factor(h_NN)
    invert(h_NN)

    assert torch.equal(h_NN, h_NN.triu())
    assert bool((h_NN.diagonal() > 0).all())
    u = h_NN.double().numpy()
    # float32 has 24 bits; the condition of these H is below 1e3.
    assert np.abs(u.T @ u - expected).max() <= 1e-4 * np.abs(expected).max()


@settings(max_examples=8, deadline=None)
@given(SIZES, SEEDS)
def test_the_upper_factor_itself(size: int, seed: int) -> None:
    """R R' = H."""
    h_NN = positive(size, seed)
    expected = h_NN.double()

    assert factor(h_NN)

    r_NN = h_NN.triu().double()
    assert torch.allclose(r_NN @ r_NN.T, expected, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(SIZES, SEEDS, st.data())
def test_what_cannot_be_factored_comes_back(
    size: int, seed: int, data: st.DataObject
) -> None:
    """A failure anywhere leaves all but the diagonal to be had by mirroring."""
    h_NN = positive(size, seed)
    at = data.draw(st.integers(0, size - 1))
    h_NN[at, at] = -1.0
    before = h_NN.clone()

    assert not factor(h_NN)
    mirror(h_NN.T)
    h_NN.diagonal().copy_(before.diagonal())

    assert torch.equal(h_NN, before)


@settings(max_examples=8, deadline=None)
@given(SIZES, SEEDS)
def test_order_and_back(size: int, seed: int) -> None:
    """Rows and columns move together, as plain indexing moves them."""
    generator = torch.Generator().manual_seed(seed)
    h_NN = torch.randn(size, size, generator=generator)
    order_N = torch.randperm(size, generator=generator)
    expected = h_NN[order_N][:, order_N]
    before = h_NN.clone()

    reorder(h_NN, order_N)
    moved = h_NN.clone()
    reorder(h_NN, torch.argsort(order_N))

    assert torch.equal(moved, expected)
    assert torch.equal(h_NN, before)


@settings(max_examples=8, deadline=None)
@given(SIZES, SEEDS)
def test_a_mirrored_matrix_is_symmetric(size: int, seed: int) -> None:
    """What is on and above the diagonal stays, and is below it as well."""
    generator = torch.Generator().manual_seed(seed)
    h_NN = torch.randn(size, size, generator=generator)
    before = h_NN.clone()

    mirror(h_NN)

    assert torch.equal(h_NN, h_NN.T)
    assert torch.equal(h_NN.triu(), before.triu())
