"""Activations are the same in memory and in files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

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


@pytest.mark.parametrize("spilled", [False, True])
def test_a_store_waits_until_all_was_read(spilled: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """What another thread reads is what was there when it began."""
    shape = (3, 2, 4)
    x: HeldActivations | SpilledActivations = HeldActivations(torch.zeros(shape))
    if spilled:
        x = SpilledActivations(tmp_path / "x", shape, torch.float32, device=CPU)
        x.store(slice(None), torch.zeros(shape))
    begun, read = Event(), Event()

    def read_all() -> bytes:
        begun.set()
        assert not read.wait(0.05)
        return b"".join(bytes(piece) for piece in x.pieces())

    with ThreadPoolExecutor(2) as threads:
        x.held = held = threads.submit(read_all)
        begun.wait()
        stored = threads.submit(x.store, slice(None), torch.ones(shape))
        stored.result()
        read.set()

    assert not any(held.result())
    assert float(x.load(slice(None)).sum()) == 24.0


def test_a_store_tells_of_what_was_not_kept() -> None:
    """The error of the thread that reads ends the work, it does not get lost."""
    x = HeldActivations(torch.zeros(1, 1, 1))
    with ThreadPoolExecutor(1) as threads:
        x.held = threads.submit(lambda: b"".join([Path("/").read_bytes()]))
        with pytest.raises(OSError, match="directory"):
            x.store(slice(None), torch.ones(1, 1, 1))


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
