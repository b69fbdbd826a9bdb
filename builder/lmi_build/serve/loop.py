"""The server's event loop, with a call when it is ready and a quiet end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import FrameType


# Its types are not read, see pyproject.toml.
class Server(uvicorn.Server):  # type: ignore[misc]
    """
    Uvicorn's server.

    Args:
        config: Uvicorn's configuration.
        on_ready: Called once, when requests are accepted.
    """

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._stopping = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started and not self._stopping:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """
        Finish running answers on the first signal, not on the second.

        The base class also raises the signal again at the end, which would turn
        every orderly stop into a death by signal.
        """
        del sig, frame
        stopping = self._stopping
        self._stopping = self.should_exit = True
        self.force_exit = stopping
