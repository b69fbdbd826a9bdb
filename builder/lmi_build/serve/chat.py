"""
`/v1/chat/completions`: OpenAI's schema, read strictly and written back.

What the engine cannot do is refused by name instead of being ignored: a client that
asks for tools must not believe that it got them.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.serve.fields import Fields, type_name
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence

    from lmi_build.package.engine import Step

_ROLES = ("system", "developer", "user", "assistant", "tool")
_USED = (
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
)
# Accepted without effect: labels of the client's own.
_LABELS = ("user", "metadata", "store", "safety_identifier", "service_tier")
# Understood, and allowed only at the value that changes nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
}
_MAX_STOPS = 16
_MAX_SEED = (1 << 63) - 1
_FINISH = {"length": "length"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """
    A checked request.

    Args:
        messages: `role` and `content` of each.
        parameters: In LMI's words, as the handler takes them.
        stream: Whether chunks are sent.
        include_usage: Whether a stream ends with a usage chunk.
        logprobs: Whether each token's logarithmic probability is sent.
    """

    messages: tuple[dict[str, str], ...]
    parameters: dict[str, Any]
    stream: bool
    include_usage: bool
    logprobs: bool


def read_chat(
    document: dict[str, Any], *, model: str, max_output_len: int
) -> ChatRequest:
    """
    Check a request.

    Args:
        document: The body.
        model: The name served; another name is refused.
        max_output_len: Taken when the client names no length.

    Raises:
        Refused: With the field at fault.
    """
    top = Fields(document)
    top.only((*_USED, *_LABELS, *_NEUTRAL))
    for key, neutral in _NEUTRAL.items():
        value = document.get(key)
        if value is not None and value not in neutral:
            top.refuse(key, "is not supported here: remove it", code="unsupported")
    wanted = top.optional_text("model")
    if wanted is not None and wanted != model:
        top.refuse("model", f"is {wanted!r}, served is {model!r}", code="unknown_model")
    options = top.mapping("stream_options")
    options.only(("include_usage",))
    return ChatRequest(
        messages=_messages(top),
        parameters=_parameters(top, max_output_len),
        stream=top.flag("stream", default=False),
        include_usage=options.flag("include_usage", default=False),
        logprobs=top.flag("logprobs", default=False),
    )


def _messages(top: Fields) -> tuple[dict[str, str], ...]:
    rows = top.document.get("messages")
    if not isinstance(rows, list) or not rows:
        top.refuse("messages", "must be an array with at least one message")
    found = []
    for index, row in enumerate(rows):
        where = f"messages[{index}]"
        if not isinstance(row, dict):
            top.refuse(where, f"must be an object, it is {type_name(row)}")
        message = Fields(row, where)
        message.only(("role", "content", "name"))
        role = message.text("role")
        if role not in _ROLES:
            message.refuse("role", f"is {role!r}, it must be {join_words(_ROLES)}")
        found.append({"role": role, "content": _content(message)})
    return tuple(found)


def _content(message: Fields) -> str:
    """A string, or the texts of content parts joined by line ends, as LMI joins."""
    value = message.document.get("content")
    if not isinstance(value, list):
        return message.text("content")
    texts = []
    for index, part in enumerate(value):
        key = f"content[{index}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            message.refuse(key, "must be a part of type `text`", code="unsupported")
        fields = Fields(part, message.name(key))
        fields.only(("type", "text"))
        texts.append(fields.text("text"))
    return "\n".join(texts)


def _parameters(top: Fields, max_output_len: int) -> dict[str, Any]:
    old = top.whole("max_tokens", low=1)
    new = top.whole("max_completion_tokens", low=1)
    if old is not None and new is not None and old != new:
        top.refuse("max_tokens", f"is {old} but `max_completion_tokens` is {new}")
    parameters: dict[str, Any] = {"max_new_tokens": new or old or max_output_len}
    temperature = top.number("temperature", low=0.0, high=2.0)
    top_p = top.number("top_p", low=0.0, high=1.0)
    seed = top.whole("seed", low=0, high=_MAX_SEED)
    # Without a temperature the answer is greedy, as from LMI's `/invocations`.
    if (temperature or 0.0) > 0.0 or (temperature is None and top_p is not None):
        parameters |= {"do_sample": True, "temperature": temperature or 1.0}
        if top_p is not None:
            parameters["top_p"] = top_p
        if seed is not None:
            parameters["seed"] = seed
    if stops := _stops(top):
        parameters["stop_sequences"] = stops
    return parameters


def _stops(top: Fields) -> list[str]:
    value = top.document.get("stop")
    if value is None:
        return []
    rows = value if isinstance(value, list) else [value]
    if len(rows) > _MAX_STOPS:
        top.refuse("stop", f"has {len(rows)} entries, at most {_MAX_STOPS} are allowed")
    stops = [top.checked_text("stop", row) for row in rows]
    if not all(stops):
        top.refuse("stop", "has an empty string, which would stop at once")
    return stops


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What stays the same in every chunk of one answer."""

    id: str
    created: int
    model: str

    @classmethod
    def begin(cls, model: str) -> Completion:
        """A fresh answer."""
        return cls(
            id=f"chatcmpl-{uuid.uuid4().hex}", created=int(time.time()), model=model
        )

    def whole(
        self, steps: Sequence[Step], *, prompt_len: int, logprobs: bool
    ) -> dict[str, Any]:
        """The answer in one piece."""
        content = "".join(step.text for step in steps)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "logprobs": _logprobs(steps) if logprobs else None,
            "finish_reason": finish_reason(steps[-1]),
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(prompt_len, len(steps)),
        }

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """One server-sent event."""
        return sse({**self._head("chat.completion.chunk"), "choices": choices, **more})

    async def chunks(
        self, stream: AsyncIterable[Step], request: ChatRequest, *, prompt_len: int
    ) -> AsyncIterator[bytes]:
        """The answer as server-sent events, `[DONE]` last."""
        extra: dict[str, Any] = {"usage": None} if request.include_usage else {}
        role = {"role": "assistant", "content": ""}
        yield self.chunk([_delta(role, None, None)], **extra)
        num_tokens = 0
        async for step in stream:
            num_tokens += 1
            logprobs = _logprobs([step]) if request.logprobs else None
            reason = finish_reason(step) if step.finish_reason else None
            yield self.chunk(
                [_delta({"content": step.text}, reason, logprobs)], **extra
            )
        if request.include_usage:
            yield self.chunk([], usage=usage(prompt_len, num_tokens))
        yield b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }


def sse(document: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def usage(prompt_len: int, completion_len: int) -> dict[str, int]:
    """Tokens in, out and together."""
    return {
        "prompt_tokens": prompt_len,
        "completion_tokens": completion_len,
        "total_tokens": prompt_len + completion_len,
    }


def finish_reason(step: Step) -> str:
    """OpenAI's word: `length`, or `stop` for an end token or a stop sequence."""
    return _FINISH.get(step.finish_reason or "", "stop")


def _delta(
    delta: dict[str, str], reason: str | None, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(steps: Sequence[Step]) -> dict[str, Any]:
    rows = [
        {
            "token": step.text,
            "logprob": step.logprob,
            "bytes": list(step.text.encode()),
            "top_logprobs": [],
        }
        for step in steps
    ]
    return {"content": rows}
