"""Chunks dealt out to threads: all of them, in order, and nothing left behind."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
import torch

from lmi_build.quantizers.lanes import Lanes, Turns, lanes_for
from lmi_build.quantizers.memory import MAX_LANES

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("items", [0, 1, 2, 17])
def test_results_come_in_the_order_of_the_items(count: int, items: int) -> None:
    """However many lanes there are, every item is computed once."""
    seen: list[int] = []

    def square(item: int) -> int:
        seen.append(item)
        return item * item

    lanes = Lanes(count)

    assert lanes.map(square, range(items)) == [x * x for x in range(items)]
    assert sorted(seen) == list(range(items))


def test_lanes_work_at_once_each_with_its_share() -> None:
    """Two lanes meet inside their items, in the caller's mode and with half of it."""
    torch.set_num_threads(4)
    lanes = Lanes(2)
    meeting = threading.Barrier(2, timeout=60)

    def meet(item: int) -> tuple[int, bool, int]:
        meeting.wait()
        return threading.get_ident(), torch.is_inference_mode_enabled(), item

    def share(item: int) -> int:
        meeting.wait()
        return torch.get_num_threads() + 0 * item

    with torch.inference_mode():
        first, second = lanes.map(meet, (0, 1))
        shares = lanes.map(share, (0, 1))

    assert first[0] != second[0]
    assert first[1]
    assert second[1]
    assert shares == [2, 2]
    assert torch.get_num_threads() == 4


def test_the_first_error_by_order_is_raised_and_threads_come_back() -> None:
    """A failed item ends the dealing out; the lanes can be used again."""
    torch.set_num_threads(2)
    lanes = Lanes(2)
    begun: list[int] = []

    def fail(item: int) -> int:
        begun.append(item)
        if item >= 3:
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match="item 3"):
        lanes.map(fail, range(1000))

    assert len(begun) < 1000
    assert torch.get_num_threads() == 2
    assert lanes.map(lambda item: item + 1, (1, 2, 3)) == [2, 3, 4]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("broken", [None, 0, 7])
def test_turns_are_taken_in_order_whoever_is_ready_first(
    count: int, broken: int | None
) -> None:
    """Even numbers are ready late; a number that failed holds nobody up."""
    turns = Turns()
    taken: list[int] = []

    def item(number: int) -> None:
        try:
            time.sleep(0.002 * (1 - number % 2))
            if number == broken:
                raise ValueError(f"item {number}")
        finally:
            with turns.take(number):
                taken.append(number)

    if broken is None:
        Lanes(count).map(item, range(20))
        assert taken == list(range(20))
    else:
        with pytest.raises(ValueError, match=f"item {broken}"):
            Lanes(count).map(item, range(20))
        assert taken == list(range(len(taken)))


def test_what_the_caller_does_alone_takes_one_share() -> None:
    """Inside `quiet` the caller has as many threads as a lane."""
    torch.set_num_threads(4)

    with Lanes(2).quiet():
        inside = torch.get_num_threads()

    assert inside == 2
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("threads", "lanes"), [(1, 1), (2, 2), (64, MAX_LANES)])
def test_lanes_are_bounded_by_threads_and_by_memory(threads: int, lanes: int) -> None:
    """Every lane holds a chunk; a device that queues its work needs only one."""
    torch.set_num_threads(threads)

    assert lanes_for(torch.device("cpu")).count == lanes
    assert lanes_for(torch.device("cuda")).count == 1
