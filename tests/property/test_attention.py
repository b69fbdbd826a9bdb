"""Laws of the tiled attention."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.decoders import attention
from lmi_build.decoders.attention import Scores, alibi_bias, attend


@settings(deadline=None, max_examples=60)
@given(
    samples=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    shared=st.integers(1, 3),
    length=st.integers(1, 23),
    tile=st.integers(1, 9),
    window=st.none() | st.integers(1, 25),
    softcap=st.none() | st.floats(0.5, 5),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_tiles_equal_the_definition(  # noqa: PLR0913 - one size each
    samples: int,
    key_heads: int,
    shared: int,
    length: int,
    tile: int,
    window: int | None,
    softcap: float | None,
    biased: bool,  # noqa: FBT001 - hypothesis passes it by name
    seed: int,
) -> None:
    """For every size of tile and window it is softmax(mask(cap(Q K) + b)) V."""
    generator = torch.Generator().manual_seed(seed)
    heads, width = key_heads * shared, 4

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query = random(samples, heads, length, width)
    key, value = (random(samples, key_heads, length, width) for _ in range(2))
    bias = random(heads, length) if biased else None
    scores = Scores(scale=0.7, softcap=softcap, window=window, bias_NL=bias)

    score = 0.7 * query @ key.repeat_interleave(shared, dim=1).transpose(2, 3)
    if softcap is not None:
        score = softcap * (score / softcap).tanh()
    if bias is not None:
        score = score + bias[:, None]
    place = torch.arange(length)
    seen = place[None] <= place[:, None]
    if window is not None:
        seen &= place[None] > place[:, None] - window
    weight = score.masked_fill(~seen, -math.inf).softmax(-1)
    mixed = weight @ value.repeat_interleave(shared, dim=1)
    expected = mixed.transpose(1, 2).flatten(2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERY_TILE", tile)
        result = attend(query, key, value, scores)

    assert torch.allclose(result, expected, atol=1e-12)


@given(num_heads=st.integers(1, 40))
def test_alibi_slopes_fall_and_keep_their_ratios(num_heads: int) -> None:
    """Slopes are powers of two to even steps; heads beyond a power come between."""
    bias_NL = alibi_bias(
        "bloom",
        num_heads=num_heads,
        num_tokens=3,
        head_dim=8,
        dtype=torch.float64,
        device=torch.device("cpu"),
    )

    whole = 2 ** int(math.log2(num_heads))
    log_N = bias_NL[:, 1].log2()
    assert torch.allclose(log_N[:whole].diff(), torch.tensor(-8 / whole).double())
    assert torch.allclose(bias_NL[:, 2], 2 * bias_NL[:, 1])
    assert len(set(log_N.tolist())) == num_heads
