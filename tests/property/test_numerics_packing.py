"""Laws of packed words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmi_build.numerics.packing import (
    SUPPORTED_BITS,
    pack_rows,
    pack_zeros,
    unpack_rows,
    unpack_zeros,
)

BITS = st.sampled_from(SUPPORTED_BITS)


def random_codes(rows: int, columns: int, bits: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8
    )


@given(BITS, st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_codes_survive_packing(bits: int, blocks: int, columns: int, seed: int) -> None:
    """Unpacking is the inverse of packing."""
    code = random_codes(32 * blocks, columns, bits, seed)

    assert torch.equal(unpack_rows(pack_rows(code, bits=bits), bits=bits), code)


@given(BITS, st.integers(0, 1000))
def test_words_are_one_stream_of_bits(bits: int, seed: int) -> None:
    """Thirty-two codes are the digits of one number, lowest first."""
    code = random_codes(32, 1, bits, seed)
    number = sum(int(c) << (bits * at) for at, c in enumerate(code[:, 0]))
    words = [(number >> (32 * at)) & 0xFFFFFFFF for at in range(bits)]

    packed = pack_rows(code, bits=bits)[:, 0].tolist()

    assert [word & 0xFFFFFFFF for word in packed] == words


@given(BITS, st.integers(1, 3), st.integers(0, 1000))
def test_zero_points_survive_packing(bits: int, groups: int, seed: int) -> None:
    """Zero points of at least one come back as they went in."""
    zero = random_codes(groups, 32, bits, seed).clamp_(1)

    assert torch.equal(unpack_zeros(pack_zeros(zero, bits=bits), bits=bits), zero)


def test_symmetric_four_bit_zeros_are_all_sevens() -> None:
    """Version 1 stores the zero point minus one: 8 becomes 7 in every nibble."""
    packed = pack_zeros(torch.full((1, 8), 8, dtype=torch.uint8), bits=4)

    assert packed.tolist() == [[0x77777777]]


def test_odd_widths_are_refused() -> None:
    """Codes that do not fill a word are a fault of the caller."""
    with pytest.raises(ValueError, match="7 codes"):
        pack_rows(torch.zeros(7, 1, dtype=torch.uint8), bits=4)
