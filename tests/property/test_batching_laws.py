"""
Whoever else is there, an answer is the one that its request gets alone.

Law, for random arrivals, prompts, sampling and departures: every answer that is not
given up equals the answer of an engine that has nothing else to do, token by token with
log probabilities and texts; nobody waits while a slot is free; every text that was read
gets a token in every turn; a turn reads one piece of one prompt at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_engines import BOUNDS, handler, tiny_engine

if TYPE_CHECKING:
    from pathlib import Path

SLOTS = BOUNDS["max_batch_size"]
PARAMETERS = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, BOUNDS["max_output_len"])},
    optional={
        "repetition_penalty": st.sampled_from([0.5, 1.3]),
        "stop": st.lists(st.sampled_from(["a", "th", ". ", "qz"]), max_size=2),
    },
)
SAMPLED = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.4, 1.5]),
        "seed": st.integers(0, 3),
        "top_k": st.sampled_from([0, 4]),
        "top_p": st.sampled_from([0.7, 1.0]),
    }
)


@dataclass(frozen=True)
class Arrival:
    """A request: after how many turns it comes, and leaves if it is not done."""

    turn: int
    leaves: int
    prompt: tuple[int, ...]
    parameters: dict[str, Any]


ARRIVALS = st.lists(
    st.builds(
        lambda turn, stays, prompt, parameters, sampled: Arrival(
            turn, turn + stays, tuple(prompt), {**parameters, **(sampled or {})}
        ),
        st.integers(0, 30),
        st.sampled_from([2, 5, 1000, 1000, 1000]),
        st.lists(st.integers(0, 28), min_size=1, max_size=BOUNDS["max_input_len"]),
        PARAMETERS,
        st.none() | SAMPLED,
    ),
    min_size=1,
    max_size=9,
)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The one under test, and one with a single slot that never has two texts."""
    root = tmp_path_factory.mktemp("engines")
    single = {"bounds": {**BOUNDS, "max_batch_size": 1}}
    return tiny_engine(root), tiny_engine(root, **single)


def play(engine: Any, arrivals: list[Arrival]) -> dict[int, Any]:
    """Texts of the requests that stayed, by number; every turn is watched."""
    scheduler, calls = engine.scheduler, engine.slots.calls
    here: dict[int, Any] = {}
    done: dict[int, Any] = {}
    turn = 0
    while here or any(row.turn >= turn for row in arrivals):
        for number, row in enumerate(arrivals):
            if row.turn == turn:
                here[number] = engine.begin(row.prompt, row.parameters)
                scheduler.add(here[number])
            if row.leaves == turn and number in here:
                scheduler.remove(here.pop(number))
        read = {text for text in here.values() if text.steps}
        calls.clear()
        found = [text for text, _ in scheduler.turn()]

        assert len(set(found)) == len(found)
        assert read <= set(found)
        assert [name for name, _ in calls].count("read") <= 1
        assert scheduler.num_running + scheduler.num_waiting == sum(
            not text.ended for text in here.values()
        )
        assert (
            not scheduler.num_waiting
            or scheduler.num_running + sum(text.ended for text in found) == SLOTS
        )
        for number, text in list(here.items()):
            if text.ended:
                done[number] = here.pop(number)
        turn += 1
    return done


@settings(max_examples=150, deadline=None)
@given(arrivals=ARRIVALS)
def test_answers_are_those_of_requests_alone(
    engines: tuple[Any, Any], arrivals: list[Arrival]
) -> None:
    """To the last bit: this engine computes its rows one by one."""
    together, alone = engines
    done = play(together, arrivals)

    assert {n for n, row in enumerate(arrivals) if row.leaves > 999} <= set(done)
    for number, text in done.items():
        row = arrivals[number]
        assert text.steps == list(alone.stream(row.prompt, row.parameters))
    assert together.scheduler.num_running == together.scheduler.num_waiting == 0


@settings(max_examples=60, deadline=None)
@given(arrivals=ARRIVALS, order=st.randoms(use_true_random=False))
def test_streams_that_are_pulled_are_the_same(
    engines: tuple[Any, Any], arrivals: list[Arrival], order: Any
) -> None:
    """More streams than slots, pulled in any order, beside lists and added texts."""
    together, alone = engines
    streams = {
        n: together.stream(row.prompt, row.parameters) for n, row in enumerate(arrivals)
    }
    found: dict[int, list[Any]] = {number: [] for number in streams}
    texts = [together.begin(row.prompt, row.parameters) for row in arrivals]
    added = [together.begin(row.prompt, row.parameters) for row in arrivals]
    for text in added:
        together.scheduler.add(text)
    while streams:
        number = order.choice(sorted(streams))
        step = next(streams[number], None)
        if step is None:
            del streams[number]
            continue
        found[number].append(step)
        if order.random() < 0.3:
            together.scheduler.turn()
        if texts and order.random() < 0.1:
            together.finish([texts.pop()])
    while together.scheduler.num_running or together.scheduler.num_waiting:
        together.scheduler.turn()

    for number, row in enumerate(arrivals):
        expected = list(alone.stream(row.prompt, row.parameters))
        assert found[number] == added[number].steps == expected


def test_a_fault_ends_those_in_slots_only(tmp_path: Path) -> None:
    """Waiting texts are answered after it."""
    engine = tiny_engine(tmp_path)
    texts = [engine.begin([1, 2, n], {"max_new_tokens": 4}) for n in range(SLOTS + 2)]
    for text in texts:
        engine.scheduler.add(text)
    engine.scheduler.turn()
    engine.slots.fault = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        engine.scheduler.turn()
    engine.slots.fault = None

    assert set(engine.scheduler.clear()) == set(texts[:SLOTS])
    while engine.scheduler.num_running or engine.scheduler.num_waiting:
        engine.scheduler.turn()
    assert [text.ended for text in texts] == [False] * SLOTS + [True] * 2


def test_long_prompts_wait_between_pieces(tmp_path: Path) -> None:
    """A running answer gets a token after every piece of a newcomer's prompt."""
    engine = tiny_engine(tmp_path)
    piece = handler().PIECE
    running = engine.begin([1], {"max_new_tokens": 12, "repetition_penalty": 2.0})
    engine.scheduler.add(running)
    engine.scheduler.turn()
    engine.scheduler.add(engine.begin([2] * (3 * piece), {"max_new_tokens": 1}))
    engine.slots.calls.clear()
    for _ in range(3):
        engine.scheduler.turn()

    assert engine.slots.calls == [("read", (1,)), ("step", (0,))] * 3
