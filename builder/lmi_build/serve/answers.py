"""
How requests reach an engine: side by side in slots, or one after another.

The HTTP application asks for answers here and does not know which way they are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lmi_build.serve.in_flight import InFlight
from lmi_build.serve.room import EngineRoom, OpenStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from lmi_build.package.engine import Engine, Step


class Stream(Protocol):
    """An answer in the making, a step or a line at a time."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """What comes, as it comes."""

    async def aclose(self) -> None:
        """Stop making it; may be called twice."""


class Answers(Protocol):
    """
    Makes answers.

    All of these raise `Refused` with status 503 where too many wait, and what the
    handler raises for a bad request, before anything is generated.
    """

    async def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation's prompt."""

    async def whole(
        self, inputs: str | Sequence[str], parameters: Mapping[str, Any]
    ) -> Any:
        """LMI's answer to one prompt or several."""

    async def lines(self, inputs: str, parameters: Mapping[str, Any]) -> Stream:
        """LMI's streamed answer, its first line made."""

    async def steps(
        self, prompt_ids: Sequence[int], parameters: Mapping[str, Any]
    ) -> Stream:
        """The tokens of an answer, the first one made."""

    def close(self) -> None:
        """Let the running call end, then stop."""


def make_answers(
    engine: Engine, *, max_waiting: int, thread: ThreadPoolExecutor | None = None
) -> Answers:
    """
    The way for an engine.

    Handlers of artifacts built before batching in flight, and of other engines, have
    no scheduler: they are asked one request after another.

    Args:
        engine: The handler's.
        max_waiting: Prompts that may wait for it.
        thread: In which it was loaded (`make_thread`); closed with the answers.
    """
    if getattr(engine, "scheduler", None) is not None:
        return InFlight(engine, max_waiting=max_waiting, thread=thread)
    return OneByOne(engine, max_waiting=max_waiting, thread=thread)


class OneByOne:
    """
    An engine that answers one request at a time.

    Args:
        engine: The handler's.
        max_waiting: Requests that may wait for it.
        thread: In which it computes; closed with the answers.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self._engine = engine
        self._room = EngineRoom(max_waiting=max_waiting, thread=thread)

    async def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation's prompt."""
        engine = self._engine
        return await self._room.run(
            lambda: engine.encode(engine.apply_chat_template(messages))
        )

    async def whole(
        self, inputs: str | Sequence[str], parameters: Mapping[str, Any]
    ) -> Any:
        """LMI's answer to one prompt or several."""
        return await self._room.run(lambda: self._engine.generate(inputs, parameters))

    async def lines(
        self, inputs: str, parameters: Mapping[str, Any]
    ) -> OpenStream[Mapping[str, Any]]:
        """LMI's streamed answer, its first line made."""
        return await OpenStream.open(
            self._room, lambda: self._engine.lines(inputs, parameters)
        )

    async def steps(
        self, prompt_ids: Sequence[int], parameters: Mapping[str, Any]
    ) -> OpenStream[Step]:
        """The tokens of an answer, the first one made."""
        return await OpenStream.open(
            self._room, lambda: self._engine.stream(prompt_ids, parameters)
        )

    def close(self) -> None:
        """Let the running call end, then stop."""
        self._room.close()
