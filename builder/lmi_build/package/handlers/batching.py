"""
In-flight batching: texts join and leave a running batch between two tokens.

One scheduler for every engine that keeps texts in slots; it becomes part of `model.py`
as `generation` does, so nothing here may need more than numpy and Python 3.9.

A turn reads at most one piece of one new prompt and then gives every running text its
next token: a long prompt delays the others by one piece a token, never by itself. What
a text gets does not depend on who else is there, as far as the engine's own sums do
not: every text has its own sampling, penalty and random numbers.

Source: Yu et al. 2022 (Orca), iteration-level scheduling; Agrawal et al. 2023
(Sarathi), prompts in pieces beside decoding.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np


class Slots(Protocol):
    """
    An engine that holds several texts, each at its own position.

    `max_seq_len` bounds every one of them.
    """

    num_slots: int

    def read(self, slot: int, ids: Sequence[int]) -> Iterator[np.ndarray | None]:
        """
        Forget what a slot holds and read a text into it, piece by piece.

        Between two pieces other slots may step.

        Yields:
            None after every piece but the last, then float32 [V] after the last token.
        """

    def step(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        """
        Append one token to some slots that were read.

        Args:
            tokens: Token id by slot.

        Returns:
            float32 [V] by slot.
        """


class Writes(Protocol):
    """A text: `ids` of its prompt and of its answer so far."""

    ids: list[int]

    def write(self, logits: np.ndarray) -> Any:
        """Choose the next token and append it; `finish_reason` tells the last one."""


class Scheduler:
    """
    Gives texts their turns; not for several threads at once.

    Texts are served in two ways: those that were added move on in `turn`, all of them
    together; `advance` moves a single one, for callers that pull tokens one by one. A
    slot is taken from whoever used it longest ago where all are held; that text is
    read anew when its turn comes.

    Args:
        slots: The engine.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._waiting: deque[Writes] = deque()
        # Whose text each slot holds, the slot used longest ago first.
        self._holders: dict[int, Writes | None] = dict.fromkeys(range(slots.num_slots))
        # Prompts that are not read to their end, the oldest first.
        self._reading: dict[int, Iterator[np.ndarray | None]] = {}
        self._added: set[Writes] = set()

    @property
    def num_slots(self) -> int:
        """Texts that move on together."""
        return len(self._holders)

    @property
    def num_waiting(self) -> int:
        """Added texts that have no slot yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Added texts that hold a slot."""
        return len(self._added) - len(self._waiting)

    def add(self, text: Writes) -> None:
        """Let a text take part; it waits for a slot behind those before it."""
        self._added.add(text)
        self._waiting.append(text)

    def remove(self, text: Writes) -> None:
        """Forget a text and free its slot; one that is not there is none the worse."""
        self._added.discard(text)
        if text in self._waiting:
            self._waiting.remove(text)
        slot = self._slot_of(text)
        if slot is not None:
            self._hold(slot, None)

    def clear(self) -> list[Any]:
        """Forget every added text that holds a slot, after a fault; returns them."""
        found = [held for held in self._holders.values() if held in self._added]
        for text in found:
            if text is not None:
                self.remove(text)
        return found

    def turn(self) -> list[tuple[Any, Any]]:
        """
        Read a piece of the oldest new prompt, and step every text that was read.

        Returns:
            Texts that got a token, with their steps; one that ended is forgotten.
        """
        self._place()
        running = {
            slot: holder.ids[-1]
            for slot, holder in self._holders.items()
            if holder in self._added and slot not in self._reading
        }
        logits = self._read_piece()
        if running:
            logits.update(self._slots.step(running))
        return [self._write(slot, row) for slot, row in logits.items()]

    def advance(self, text: Writes) -> Any:
        """The next step of one text that was not added."""
        slot = self._slot_of(text)
        if slot is None:
            slot = self.claim(text)
            *_, logits = self._slots.read(slot, text.ids)
            if logits is None:
                raise AssertionError("the last piece has logits")
        else:
            self._hold(slot, text)
            logits = self._slots.step({slot: text.ids[-1]})[slot]
        return self._write(slot, logits)[1]

    def claim(self, text: Writes | None) -> int:
        """A slot that nobody holds, or the one used longest ago, for another use."""
        free = [slot for slot, holder in self._holders.items() if holder is None]
        slot = min(free) if free else next(iter(self._holders))
        evicted = self._holders[slot]
        self._hold(slot, text)
        if evicted in self._added:
            self._waiting.appendleft(evicted)
        return slot

    def _place(self) -> None:
        """Give waiting texts the slots that are free, or held by nobody who waits."""
        # Low slots first: an engine may compute no further than the last one in use.
        for slot in sorted(self._holders):
            if not self._waiting:
                return
            if self._holders[slot] not in self._added:
                text = self._waiting.popleft()
                self._hold(slot, text)
                self._reading[slot] = self._slots.read(slot, text.ids)

    def _read_piece(self) -> dict[int, np.ndarray]:
        for slot, pieces in self._reading.items():
            logits = next(pieces)
            if logits is None:
                return {}
            del self._reading[slot]
            return {slot: logits}
        return {}

    def _write(self, slot: int, logits: np.ndarray) -> tuple[Any, Any]:
        text = self._holders[slot]
        if text is None:
            raise AssertionError("only held slots move on")
        step = text.write(logits)
        if step.finish_reason is not None:
            self.remove(text)
        return text, step

    def _hold(self, slot: int, text: Writes | None) -> None:
        if self._holders[slot] is not text:
            self._reading.pop(slot, None)
        del self._holders[slot]
        self._holders[slot] = text

    def _slot_of(self, text: Writes) -> int | None:
        return next((s for s, held in self._holders.items() if held is text), None)
