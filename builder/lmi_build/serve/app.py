"""
The HTTP application: LMI's `/ping` and `/invocations`, and OpenAI's chat.

Every answer is JSON, errors too: under `/v1/` in OpenAI's form, elsewhere in LMI's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lmi_build.serve.answers import make_answers
from lmi_build.serve.chat import Completion, read_chat
from lmi_build.serve.fields import parse_object
from lmi_build.serve.invocations import (
    EVENT_STREAM,
    JSONLINES,
    encoded_lines,
    read_invocation,
)
from lmi_build.serve.problems import Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from concurrent.futures import ThreadPoolExecutor

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from lmi_build.package.engine import Loaded
    from lmi_build.serve.answers import Stream
    from lmi_build.values.manifest import Manifest

# SageMaker takes request bodies up to 6 MB; no prompt within a bound needs as much.
MAX_BODY_BYTES = 6 << 20
MAX_WAITING = 64
_BUSY = 503
# Nobody sees it; nginx's word for it.
_CLIENT_GONE = 499
T = TypeVar("T")
_log = logging.getLogger(__name__)


class OwnedStream(StreamingResponse):
    """A streaming answer that closes its token stream, whatever happens."""

    def __init__(
        self, stream: Stream, body: AsyncIterator[bytes], *, media_type: str
    ) -> None:
        super().__init__(body, media_type=media_type)
        self._stream = stream
        # Proxies must pass tokens on as they come.
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a client that is gone before the first byte counts, too."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stream.aclose()


class Service:
    """
    The endpoints of one artifact.

    Args:
        loaded: The engine.
        manifest: The artifact's manifest.
        max_body_bytes: Longest request body that is read.
        max_waiting: Prompts that may wait for the engine.
        thread: In which it was loaded; closed with the answers.
    """

    def __init__(
        self,
        loaded: Loaded,
        manifest: Manifest,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_waiting: int = MAX_WAITING,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self._loaded = loaded
        self._manifest = manifest
        self._max_body_bytes = max_body_bytes
        self.answers = make_answers(
            loaded.engine, max_waiting=max_waiting, thread=thread
        )

    async def ping(self, request: Request) -> Response:
        """Whether the engine is loaded; it is, or nobody would answer."""
        del request
        return JSONResponse({"status": "Healthy"})

    async def models(self, request: Request) -> Response:
        """The one model that is served."""
        name = request.path_params.get("name")
        if name is not None and name != self._manifest.name:
            raise Refused(
                f"model {name!r} is not served, {self._manifest.name!r} is",
                status=404,
                code="unknown_model",
            )
        bounds = self._manifest.bounds
        row = {
            "id": self._manifest.name,
            "object": "model",
            "created": 0,
            "owned_by": "lmi-build",
            "max_model_len": bounds["max_seq_len"],
            "digest": self._manifest.digest,
        }
        return JSONResponse(row if name else {"object": "list", "data": [row]})

    async def invocations(self, request: Request) -> Response:
        """LMI's schema; a body with `messages` is a chat, as in LMI."""
        document = parse_object(await self._body(request))
        if "messages" in document:
            return await self._chat(request, document)
        invocation = read_invocation(document)
        if not invocation.stream:
            answer = await _unless_gone(
                request, self.answers.whole(invocation.inputs, invocation.parameters)
            )
            return JSONResponse(answer)
        stream = await self.answers.lines(str(invocation.inputs), invocation.parameters)
        events = EVENT_STREAM in request.headers.get("accept", "")
        return OwnedStream(
            stream,
            encoded_lines(stream, events=events),
            media_type=EVENT_STREAM if events else JSONLINES,
        )

    async def chat_completions(self, request: Request) -> Response:
        """OpenAI's schema."""
        return await self._chat(request, parse_object(await self._body(request)))

    async def _chat(self, request: Request, document: dict[str, Any]) -> Response:
        bounds = self._manifest.bounds
        chat = read_chat(
            document,
            model=self._manifest.name,
            max_output_len=int(str(bounds["max_output_len"])),
        )
        ids = await self.answers.chat_ids(chat.messages)
        completion = Completion.begin(self._manifest.name)
        if chat.stream:
            stream = await self.answers.steps(ids, chat.parameters)
            body = completion.chunks(stream, chat, prompt_len=len(ids))
            return OwnedStream(stream, body, media_type=EVENT_STREAM)
        steps = await _unless_gone(request, self._steps(ids, chat.parameters))
        return JSONResponse(
            completion.whole(steps, prompt_len=len(ids), logprobs=chat.logprobs)
        )

    async def _steps(self, ids: list[int], parameters: dict[str, Any]) -> list[Any]:
        stream = await self.answers.steps(ids, parameters)
        try:
            return [step async for step in stream]
        finally:
            await stream.aclose()

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "application/json")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise Refused(
                f"content type is {kind!r}, only application/json is read",
                status=415,
                code="wrong_content_type",
            )
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self._max_body_bytes:
                raise Refused(
                    f"the body is longer than {self._max_body_bytes} bytes",
                    status=413,
                    code="body_too_long",
                )
        return bytes(data)

    async def on_refused(self, request: Request, error: Exception) -> Response:
        """Answer a request that was refused before the engine saw it."""
        if not isinstance(error, Refused):
            raise error
        return _problem(request, error)

    async def on_bound(self, request: Request, error: Exception) -> Response:
        """Answer a request that the handler refused for its length."""
        # As the handler answers in the container; OpenAI's clients expect 400.
        status = 400 if _is_openai(request) else 413
        problem = Refused(str(error), status=status, code="bound_exceeded")
        return _problem(request, problem)

    async def on_invalid(self, request: Request, error: Exception) -> Response:
        """Answer a request whose parameters the handler refused."""
        return _problem(request, Refused(str(error), code="invalid_request"))

    async def on_http(self, request: Request, error: Exception) -> Response:
        """Answer an unknown path or method."""
        if not isinstance(error, HTTPException):
            raise error
        problem = Refused(error.detail, status=error.status_code, code="http")
        response = _problem(request, problem)
        response.headers.update(error.headers or {})
        return response

    async def on_failure(self, request: Request, error: Exception) -> Response:
        """Answer when the engine failed; the reason goes to the log only."""
        _log.error("request to %s failed", request.url.path, exc_info=error)
        problem = Refused("the engine failed", status=500, code="internal")
        return _problem(request, problem)


def make_app(service: Service, loaded: Loaded) -> Starlette:
    """Join endpoints and error handlers."""
    post = ["POST"]
    routes = [
        Route("/ping", service.ping),
        Route("/invocations", service.invocations, methods=post),
        Route("/v1/chat/completions", service.chat_completions, methods=post),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.models),
    ]
    return Starlette(
        routes=routes,
        exception_handlers={
            Refused: service.on_refused,
            HTTPException: service.on_http,
            loaded.bound_exceeded: service.on_bound,
            loaded.invalid_request: service.on_invalid,
            Exception: service.on_failure,
        },
    )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """
    Do work whose body was read, and give it up when its client leaves.

    Raises:
        Refused: 499 when the client left first.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Refused("the client left", status=_CLIENT_GONE, code="client_gone")
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _is_openai(request: Request) -> bool:
    return request.url.path.startswith("/v1/")


def _problem(request: Request, problem: Refused) -> Response:
    """An error in the form of the API that was called."""
    if _is_openai(request):
        client = problem.status < 500  # noqa: PLR2004 - 5xx is the server's fault
        body: dict[str, Any] = {
            "error": {
                "message": problem.message,
                "type": "invalid_request_error" if client else "server_error",
                "param": problem.param,
                "code": problem.code,
            }
        }
    else:
        body = {"error": problem.message, "code": problem.status}
    # Another generation of a few hundred tokens takes about as long.
    headers = {"retry-after": "2"} if problem.status == _BUSY else None
    return Response(
        json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"),
        status_code=problem.status,
        media_type="application/json",
        headers=headers,
    )
