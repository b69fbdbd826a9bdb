"""The engine room: one at a time, bounded waiting, always left again."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.serve.problems import Refused
from lmi_build.serve.room import EngineRoom, OpenStream

if TYPE_CHECKING:
    from collections.abc import Iterator


def _count(log: list[str], num: int = 3) -> Iterator[int]:
    log.append("begun")
    try:
        yield from range(1, num + 1)
    finally:
        log.append("closed")


def _run(scenario: Any) -> Any:
    return asyncio.run(scenario)


def test_stream_gives_every_item_and_leaves() -> None:
    """After a stream is closed the next request gets in."""

    async def scenario() -> list[int]:
        room = EngineRoom(max_waiting=1)
        log: list[str] = []
        stream = await OpenStream.open(room, lambda: _count(log))
        found = [item async for item in stream]
        await stream.aclose()
        await stream.aclose()
        assert await room.run(lambda: "next") == "next"
        assert log == ["begun", "closed"]
        room.close()
        return found

    assert _run(scenario()) == [1, 2, 3]


def test_stream_that_is_given_up_is_closed_in_the_engine() -> None:
    """Whoever stops reading stops the generation."""

    async def scenario() -> list[str]:
        room = EngineRoom(max_waiting=1)
        log: list[str] = []
        stream = await OpenStream.open(room, lambda: _count(log, num=100))
        await stream.aclose()
        await room.run(lambda: None)
        room.close()
        return log

    assert _run(scenario()) == ["begun", "closed"]


@pytest.mark.parametrize("fault", [ValueError("bad"), RuntimeError("broken")])
def test_refused_streams_leave_the_room(fault: Exception) -> None:
    """A fault before the first item is raised, and the next request gets in."""

    def begin() -> Iterator[int]:
        raise fault

    async def scenario() -> str:
        room = EngineRoom(max_waiting=1)
        with pytest.raises(type(fault), match=str(fault)):
            await OpenStream.open(room, begin)
        answer = await room.run(lambda: "in")
        room.close()
        return answer

    assert _run(scenario()) == "in"


def test_empty_streams_are_a_fault() -> None:
    """An engine that gives no token at all is broken."""

    async def scenario() -> None:
        room = EngineRoom(max_waiting=1)
        with pytest.raises(RuntimeError, match="first token"):
            await OpenStream.open(room, lambda: iter(()))
        room.close()

    _run(scenario())


def test_waiting_is_bounded() -> None:
    """One works, one waits, the third is told to come back."""

    async def scenario() -> list[Any]:
        room = EngineRoom(max_waiting=1)
        gate = threading.Event()
        working = asyncio.create_task(room.run(gate.wait))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(room.run(lambda: "second"))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            await room.run(lambda: "third")
        gate.set()
        answers = [await working, await waiting, caught.value.status]
        room.close()
        return answers

    assert _run(scenario()) == [True, "second", 503]


def test_cancelled_calls_hold_the_room_until_they_end() -> None:
    """A native call cannot be interrupted, so nobody else enters meanwhile."""

    async def scenario() -> list[str]:
        room = EngineRoom(max_waiting=2)
        log: list[str] = []
        gate = threading.Event()

        def slow() -> None:
            gate.wait()
            log.append("slow")

        task = asyncio.create_task(room.run(slow))
        await asyncio.sleep(0)
        task.cancel()
        second = asyncio.create_task(room.run(lambda: log.append("second")))
        await asyncio.sleep(0)
        gate.set()
        await second
        with pytest.raises(asyncio.CancelledError):
            await task
        room.close()
        return log

    assert _run(scenario()) == ["slow", "second"]
