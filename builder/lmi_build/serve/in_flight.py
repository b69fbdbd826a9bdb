"""
Requests side by side: each joins the running batch between two tokens, and leaves it.

Everything that computes runs in one thread, a turn of the handler's scheduler at a
time; texts join and leave between turns. Prompts become tokens in a thread of their
own, so that a long one does not hold up running answers.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from lmi_build.serve.problems import Refused
from lmi_build.serve.room import make_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from lmi_build.package.engine import Step

T = TypeVar("T")


class InFlight:
    """
    An engine whose handler has a scheduler.

    Args:
        engine: The handler's; nobody else may generate with it.
        max_waiting: Texts that may wait for a slot.
        thread: In which it computes; closed with this.
    """

    def __init__(
        self,
        engine: Any,
        *,
        max_waiting: int,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self._engine = engine
        self._num_slots = int(engine.scheduler.num_slots)
        self._max_waiting = max_waiting
        # Steps of each text that takes part, or the fault that ended it.
        self._queues: dict[Any, asyncio.Queue[Any]] = {}
        self._joining: list[Any] = []
        self._leaving: list[Any] = []
        self._num_begun = 0
        self._driver: asyncio.Task[None] | None = None
        self._turns = thread or make_thread()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    @property
    def num_texts(self) -> int:
        """Texts that run or wait, and those that become tokens."""
        return len(self._queues) + self._num_begun

    async def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation's prompt."""
        engine = self._engine
        self._check_room(1)
        return await self._read(
            lambda: list(engine.encode(engine.apply_chat_template(messages)))
        )

    async def whole(
        self, inputs: str | Sequence[str], parameters: Mapping[str, Any]
    ) -> Any:
        """LMI's answer to one prompt or several."""
        # More than there are slots is refused by the handler, as over a bound.
        num = 1 if isinstance(inputs, str) else min(len(inputs), self._num_slots)
        stream = await self._open(
            num, lambda: list(self._engine.begin_all(inputs, parameters))
        )
        try:
            async for _ in stream:
                pass
        finally:
            await stream.aclose()
        found = [text.result() for text in stream.texts]
        return found[0] if isinstance(inputs, str) else found

    async def lines(self, inputs: str, parameters: Mapping[str, Any]) -> Lines:
        """LMI's streamed answer, its first line made."""
        stream = await self._open(
            1, lambda: list(self._engine.begin_all(inputs, parameters))
        )
        return Lines(stream)

    async def steps(
        self, prompt_ids: Sequence[int], parameters: Mapping[str, Any]
    ) -> Steps:
        """The tokens of an answer, the first one made."""
        return await self._open(1, lambda: [self._engine.begin(prompt_ids, parameters)])

    def close(self) -> None:
        """Let the running turn end, then stop."""
        self._turns.shutdown(wait=True, cancel_futures=True)
        self._reader.shutdown(wait=True, cancel_futures=True)

    async def _open(self, num: int, begin: Callable[[], list[Any]]) -> Steps:
        """
        Let texts take part, and wait for the first step.

        Raises:
            Refused: 503 when too many are here.
        """
        self._check_room(num)
        self._num_begun += num
        try:
            texts = await self._read(begin)
        finally:
            self._num_begun -= num
        queue: asyncio.Queue[Any] = asyncio.Queue()
        for text in texts:
            self._queues[text] = queue
            self._joining.append(text)
        if self._driver is None:
            self._driver = asyncio.create_task(self._drive())
        stream = Steps(self, texts, queue)
        try:
            await stream.begin()
        except BaseException:
            await stream.aclose()
            raise
        return stream

    def _check_room(self, num: int) -> None:
        if self.num_texts + num > self._num_slots + self._max_waiting:
            waiting = max(self.num_texts - self._num_slots, 0)
            raise Refused(
                f"{waiting} prompts are waiting, and at most {self._max_waiting} may",
                status=503,
                code="busy",
            )

    def leave(self, texts: Sequence[Any]) -> None:
        """Free the slots of texts at the next turn; those that ended have none."""
        for text in texts:
            if self._queues.pop(text, None) is not None and not text.ended:
                self._leaving.append(text)

    async def _read(self, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, function)

    async def _drive(self) -> None:
        """Turn after turn, as long as anybody is here."""
        loop = asyncio.get_running_loop()
        try:
            while self._queues or self._leaving:
                joining, self._joining = self._joining, []
                leaving, self._leaving = self._leaving, []
                found = await loop.run_in_executor(
                    self._turns, self._turn, joining, leaving
                )
                for text, outcome in found:
                    queue = self._queues.get(text)
                    if queue is not None:
                        queue.put_nowait(outcome)
        except Exception as error:
            # Nobody may wait for a token that never comes.
            for queue in self._queues.values():
                queue.put_nowait(error)
            raise
        finally:
            self._driver = None

    def _turn(self, joining: list[Any], leaving: list[Any]) -> list[tuple[Any, Any]]:
        """In the engine's thread: who joins, who leaves, a turn of the others."""
        scheduler = self._engine.scheduler
        for text in joining:
            scheduler.add(text)
        for text in leaving:
            scheduler.remove(text)
        try:
            found: list[tuple[Any, Any]] = scheduler.turn()
        except Exception as error:  # noqa: BLE001 - it goes to whom it belongs
            # Those who wait for a slot have nothing to do with it.
            return [(text, error) for text in scheduler.clear()]
        return found


class Steps:
    """
    Steps of some texts, as they come; whoever has it must close it.

    Args:
        owner: Where the texts take part.
        texts: Of one request.
        queue: Where their steps arrive.
    """

    def __init__(
        self, owner: InFlight, texts: Sequence[Any], queue: asyncio.Queue[Any]
    ) -> None:
        self.texts = texts
        self._owner = owner
        self._queue = queue
        self._first: Step | None = None
        self._num_going = len(texts)

    async def begin(self) -> None:
        """Wait for the first step."""
        self._first = await self._next()

    async def __aiter__(self) -> AsyncIterator[Step]:
        step = self._first
        while step is not None:
            yield step
            step = await self._next() if self._num_going else None

    async def aclose(self) -> None:
        """Take no more part."""
        self._owner.leave(self.texts)

    async def _next(self) -> Step:
        step: Step | Exception = await self._queue.get()
        if isinstance(step, Exception):
            raise step
        if step.finish_reason is not None:
            self._num_going -= 1
        return step


class Lines:
    """
    The lines of LMI's streamed answer.

    Args:
        stream: The steps of one text.
    """

    def __init__(self, stream: Steps) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        (text,) = self._stream.texts
        place = 0
        # The text itself may be further by now.
        async for _ in self._stream:
            yield text.line(place)
            place += 1

    async def aclose(self) -> None:
        """Take no more part."""
        await self._stream.aclose()
