"""Requests in flight: side by side, as if alone; bounded, given up, and broken."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.serve.in_flight import InFlight
from lmi_build.serve.problems import Refused
from tiny_engines import BOUNDS, handler, tiny_engine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

SLOTS = BOUNDS["max_batch_size"]
LONG = {"max_new_tokens": 12, "repetition_penalty": 1.5}
PROMPTS = ["the cat", "a", "on the mat, she sat.", "why not", "zebra. ", "so it goes"]


def run(
    engine: Any, scenario: Callable[[InFlight], Awaitable[Any]], *, max_waiting: int = 9
) -> Any:
    """Play a scenario to its end; nobody may be left in the engine."""

    async def play() -> Any:
        flight = InFlight(engine, max_waiting=max_waiting)
        found = await scenario(flight)
        if flight._driver is not None:
            await flight._driver
        assert flight.num_texts == 0
        flight.close()
        return found

    found = asyncio.run(asyncio.wait_for(play(), 30))
    assert engine.scheduler.num_running == engine.scheduler.num_waiting == 0
    return found


def alone(engine: Any, prompt: str, parameters: dict[str, Any]) -> list[Any]:
    """The steps of a prompt when nobody else is there."""
    return list(engine.stream(engine.encode(prompt), parameters))


async def drain(stream: Any) -> list[Any]:
    """All of it."""
    try:
        return [item async for item in stream]
    finally:
        await stream.aclose()


def test_answers_side_by_side_are_those_alone(tmp_path: Path) -> None:
    """Streams, lines and lists at once, each with its own sampling."""
    engine = tiny_engine(tmp_path)
    wanted: list[dict[str, Any]] = [
        {**LONG, "temperature": 0.8, "seed": n} if n % 2 else LONG
        for n in range(len(PROMPTS))
    ]
    expected = [
        alone(engine, prompt, parameters)
        for prompt, parameters in zip(PROMPTS, wanted, strict=True)
    ]
    lists = engine.generate(PROMPTS[:SLOTS], LONG)

    async def scenario(flight: InFlight) -> tuple[Any, Any, Any]:
        async def steps(prompt: str, parameters: dict[str, Any]) -> list[Any]:
            return await drain(await flight.steps(engine.encode(prompt), parameters))

        async def lines(prompt: str, parameters: dict[str, Any]) -> list[Any]:
            return await drain(await flight.lines(prompt, parameters))

        return await asyncio.gather(
            asyncio.gather(*(steps(*row) for row in zip(PROMPTS, wanted, strict=True))),
            lines(PROMPTS[2], wanted[2]),
            flight.whole(PROMPTS[:SLOTS], LONG),
        )

    steps, lines, whole = run(engine, scenario)

    assert steps == expected
    assert lines == list(engine.lines(PROMPTS[2], wanted[2]))
    assert whole == lists
    assert max(len(slots) for name, slots in engine.slots.calls if name == "step") > 1


def test_waiting_is_bounded(tmp_path: Path) -> None:
    """Slots and the queue take so many; the next one is told to come back."""
    engine = tiny_engine(tmp_path)

    async def scenario(flight: InFlight) -> Any:
        ids = engine.encode(PROMPTS[0])
        running = [await flight.steps(ids, LONG) for _ in range(SLOTS)]
        waiting = asyncio.create_task(flight.whole(PROMPTS[1], LONG))
        await asyncio.sleep(0)
        refusals = []
        for request in (
            flight.steps(ids, LONG),
            flight.whole(PROMPTS[:2], LONG),
            flight.chat_ids([{"role": "user", "content": "a"}]),
        ):
            with pytest.raises(Refused) as caught:
                await request
            refusals.append((caught.value.status, caught.value.code))
        await asyncio.gather(*(drain(stream) for stream in running))
        return refusals, await waiting

    refusals, answer = run(engine, scenario, max_waiting=1)

    assert refusals == [(503, "busy")] * 3
    assert answer == engine.generate(PROMPTS[1], LONG)


def test_bounds_are_checked_before_anybody_joins(tmp_path: Path) -> None:
    """A list over the batch, a long prompt and answer, a wrong parameter."""
    engine, own = tiny_engine(tmp_path), handler()
    most = BOUNDS["max_input_len"]

    async def scenario(flight: InFlight) -> None:
        over: list[tuple[Any, dict[str, Any]]] = [
            (["a"] * (SLOTS + 1), LONG),
            ("a" * (most + 1), LONG),
            ("a", {"max_new_tokens": BOUNDS["max_output_len"] + 1}),
        ]
        for inputs, parameters in over:
            with pytest.raises(ValueError, match=r"at most max_\w+ = "):
                await flight.whole(inputs, parameters)
        with pytest.raises(ValueError, match="did you mean `top_k`"):
            await flight.lines("a", {"topk": 1})
        assert (await flight.whole("a" * most, LONG))["generated_text"] is not None

    run(engine, scenario)
    assert own.BoundExceeded.__name__ == "BoundExceeded"


def test_whoever_leaves_frees_a_slot(tmp_path: Path) -> None:
    """Streams that are closed early make room for those that wait."""
    engine = tiny_engine(tmp_path)

    async def scenario(flight: InFlight) -> Any:
        ids = engine.encode(PROMPTS[0])
        running = [await flight.steps(ids, LONG) for _ in range(SLOTS)]
        waiting = asyncio.create_task(flight.whole(PROMPTS[1], LONG))
        await asyncio.sleep(0)
        for stream in running:
            await stream.aclose()
            await stream.aclose()
        return await waiting

    engine.slots.calls.clear()
    answer = run(engine, scenario)
    steps = [slots for name, slots in engine.slots.calls if name == "step"]

    assert answer == engine.generate(PROMPTS[1], LONG)
    assert len(steps[-1]) == 1


def test_a_request_that_is_cancelled_takes_no_slot(tmp_path: Path) -> None:
    """While its prompt is read, while it waits, and while it runs."""
    engine = tiny_engine(tmp_path, seconds=0.002)

    async def scenario(flight: InFlight) -> int:
        tasks = [asyncio.create_task(flight.whole(p, LONG)) for p in PROMPTS]
        for wait, task in enumerate(tasks):
            await asyncio.sleep(0.001 * wait)
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(row, (asyncio.CancelledError, dict)) for row in found)
        return sum(isinstance(row, dict) for row in found)

    assert run(engine, scenario) < len(PROMPTS)


def test_a_fault_reaches_those_it_ends(tmp_path: Path) -> None:
    """Those in slots fail; who waits, and who comes later, is answered."""
    engine = tiny_engine(tmp_path)

    async def scenario(flight: InFlight) -> Any:
        ids = engine.encode(PROMPTS[0])
        running = [await flight.steps(ids, LONG) for _ in range(SLOTS)]
        engine.slots.fault = RuntimeError("broken")
        failed = await asyncio.gather(
            *(drain(stream) for stream in running), return_exceptions=True
        )
        engine.slots.fault = None
        return failed, await flight.whole(PROMPTS[1], LONG)

    failed, answer = run(engine, scenario)

    assert any(isinstance(row, RuntimeError) for row in failed)
    assert answer == engine.generate(PROMPTS[1], LONG)
