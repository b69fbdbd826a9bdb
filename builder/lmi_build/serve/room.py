"""
Where requests meet an engine without a scheduler: one at a time, in one thread.

An engine is a native object without locks of its own, so every call to it goes to
the same single thread, and a lock keeps two streams from taking turns. Waiting is
bounded: beyond it a client is told to come back.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

from lmi_build.serve.problems import Refused

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Iterator,
    )

T = TypeVar("T")


def make_thread() -> ThreadPoolExecutor:
    """
    The one thread that computes.

    An engine is loaded in it too: OpenMP keeps threads for each thread that computed,
    and where those of two threads together are more than the cores, waiting threads
    sleep at once instead of spinning, which makes a step of hundreds of parallel
    regions several times slower.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="engine")


class EngineRoom:
    """
    Runs engine calls one after another.

    Args:
        max_waiting: Requests that may wait for their turn.
        thread: In which the engine computes; closed with this.
    """

    def __init__(
        self, *, max_waiting: int, thread: ThreadPoolExecutor | None = None
    ) -> None:
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._lock = asyncio.Lock()
        self._thread = thread or make_thread()

    async def enter(self) -> None:
        """
        Wait for the engine.

        Raises:
            Refused: 503 when too many are waiting already.
        """
        if self._num_waiting >= self._max_waiting and self._lock.locked():
            raise Refused(
                f"{self._num_waiting} requests are waiting, that is the limit",
                status=503,
                code="busy",
            )
        self._num_waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._num_waiting -= 1

    def leave(self) -> None:
        """Let the next one in."""
        self._lock.release()

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function in the engine's thread; the caller has entered."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def run(self, function: Callable[[], T]) -> T:
        """Enter, run a function to its end, leave."""
        await self.enter()
        try:
            # Shielded: a native call cannot be interrupted, so the room must not be
            # left while it goes on.
            return await _finish(self.call(function))
        finally:
            self.leave()

    def close(self) -> None:
        """Let the running call end, then stop the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


async def _finish(awaitable: Awaitable[T]) -> T:
    """Await to the end even when the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class OpenStream(Generic[T]):
    """
    One generation in progress; it holds the room until `aclose`.

    The first item is made by `open`, so that a refused request is known before an
    answer with status 200 has begun.
    """

    def __init__(self, room: EngineRoom, items: Iterator[T], first: T) -> None:
        self._room = room
        self._items = items
        self._first = first
        self._closed = False

    @classmethod
    async def open(
        cls, room: EngineRoom, begin: Callable[[], Iterator[T]]
    ) -> OpenStream[T]:
        """
        Enter the room and make the first item.

        Raises:
            Refused: 503 when the room is full.
            ValueError: What the handler raises for a bad request.
        """
        await room.enter()
        try:
            items, first = await _finish(room.call(lambda: _first_of(begin)))
        except BaseException:
            room.leave()
            raise
        return cls(room, items, first)

    async def __aiter__(self) -> AsyncIterator[T]:
        item: T | None = self._first
        while item is not None:
            yield item
            item = await _finish(self._room.call(lambda: next(self._items, None)))

    async def aclose(self) -> None:
        """Stop generating and leave the room; may be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            close = getattr(self._items, "close", None)
            if close is not None:
                await _finish(self._room.call(close))
        finally:
            self._room.leave()


def _first_of(begin: Callable[[], Iterator[T]]) -> tuple[Iterator[T], T]:
    items = begin()
    for first in items:
        return items, first
    raise RuntimeError("the engine ended before its first token")
