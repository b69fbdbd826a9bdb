"""
Several chunks of samples at a time, each computed by a thread of its own.

A chunk is many small products with smaller operations between them. Splitting each of
these over all threads costs more than it gains, since the threads wait for each other
some hundred times per chunk: so whole chunks are dealt out instead, and inside a chunk
torch has only its lane's share of the threads.

What chunks leave together must not hang on who was first: largest magnitudes and rows
kept by their number do not, and sums that do are made in turn (`Turns`).
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

from lmi_build.quantizers.memory import MAX_LANES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """
    The threads that chunks are dealt out to; the caller's is one of them.

    Args:
        count: How many; 1 computes one chunk after another with all threads.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._share = max(1, torch.get_num_threads() // count)
        self._helpers: ThreadPoolExecutor | None = None

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """One lane's share of threads for what the caller does by itself."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._share)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> list[Result]:
        """
        Results in the order of the items, which are begun in that order.

        The first error by that order is raised, after all lanes came to rest.
        """
        if self.count == 1 or len(items) == 1:
            return [function(item) for item in items]
        waiting = deque(enumerate(items))
        results: dict[int, Result] = {}
        errors: dict[int, Exception] = {}

        def work() -> None:
            while True:
                try:
                    number, item = waiting.popleft()
                except IndexError:
                    return
                try:
                    results[number] = function(item)
                except Exception as error:  # noqa: BLE001 - raised in the caller's
                    errors[number] = error
                    waiting.clear()

        self._run(work)
        if errors:
            raise errors[min(errors)]
        return [results[number] for number in range(len(items))]

    def _run(self, work: Callable[[], None]) -> None:
        helpers = self._helpers or self._start()
        with self.quiet():
            inside = torch.is_inference_mode_enabled()
            others = [
                helpers.submit(_with_mode, work, inside) for _ in range(self.count - 1)
            ]
            work()
            for other in others:
                other.result()

    def _start(self) -> ThreadPoolExecutor:
        """Start the helpers, each with its share of threads."""
        ready = threading.Barrier(self.count)

        def prepare() -> None:
            torch.set_num_threads(self._share)
            ready.wait()

        threads = torch.get_num_threads()
        self._helpers = ThreadPoolExecutor(self.count - 1, initializer=prepare)
        for _ in range(self.count - 1):
            self._helpers.submit(lambda: None)
        ready.wait()
        # One of torch's libraries keeps one number for all threads.
        torch.set_num_threads(threads)
        return self._helpers


class Turns:
    """Lets one item after another through, in the order of their numbers from 0."""

    def __init__(self) -> None:
        self._next = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, number: int) -> Iterator[None]:
        """
        Wait for the items before, which must all take their turn, failed or not.

        `Lanes.map` begins items in order, so whoever waits, waits for a lane at work.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._next == number)
        try:
            yield
        finally:
            with self._changed:
                self._next += 1
                self._changed.notify_all()


def _with_mode(work: Callable[[], None], inside: bool) -> None:  # noqa: FBT001
    """The mode that the caller is in holds for its own thread only."""
    with torch.inference_mode(inside):
        work()


def lanes_for(device: torch.device) -> Lanes:
    """As many lanes as threads, up to a limit; one where work is queued anyway."""
    if device.type != "cpu":
        return Lanes()
    return Lanes(max(1, min(MAX_LANES, torch.get_num_threads())))
