"""Activations are the same in memory and in files."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.quantizers.activations import (
    HeldActivations,
    Room,
    SpilledActivations,
)

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 9)),
    dtype=st.sampled_from(DTYPES),
    writes=st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 7), st.integers(0, 99)), max_size=6
    ),
)
def test_files_hold_what_memory_holds(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    writes: list[tuple[int, int, int]],
) -> None:
    """Any stores, whole or in part, read back the same from both, bit for bit."""
    with TemporaryDirectory() as folder:
        held = HeldActivations(torch.zeros(shape, dtype=dtype))
        spilled = SpilledActivations(Path(folder) / "x.bin", shape, dtype, device=CPU)
        for first, count, seed in writes:
            part = slice(first, first + count)
            size = len(range(*part.indices(shape[0])))
            generator = torch.Generator().manual_seed(seed)
            values = torch.randn(size, *shape[1:], generator=generator).to(dtype)
            held.store(part, values)
            spilled.store(part, values)
        for at in range(shape[0]):
            part = slice(at, at + 2)
            assert torch.equal(held.load(part), spilled.load(part))
        assert b"".join(held.pieces()) == b"".join(spilled.pieces())
        spilled.close()


def test_a_slot_reuses_its_memory_and_slots_are_apart() -> None:
    """A second call for a slot takes the same bytes; another slot has its own."""
    room = Room(2, 3, torch.float32, device=CPU, folder=None)
    wide = room(8)
    narrow = room(4)
    other = room(4, slot=1)

    assert isinstance(wide, HeldActivations)
    assert isinstance(narrow, HeldActivations)
    assert isinstance(other, HeldActivations)
    assert narrow.x_NLW.data_ptr() == wide.x_NLW.data_ptr()
    assert other.x_NLW.data_ptr() != wide.x_NLW.data_ptr()


def test_a_disk_without_room_is_told_at_once(tmp_path: Path) -> None:
    """The file is reserved when it is made, not when it is full."""
    with pytest.raises(OSError, match=r"(?i)space|large|invalid"):
        SpilledActivations(
            tmp_path / "x.bin", (1 << 20, 1 << 20, 1 << 10), torch.float32, device=CPU
        )
