"""
`/invocations`: LMI's schema, as its containers answer it.

Source: djl-serving `serving/docs/lmi/user_guides/lmi_input_output_schema.md` and
`djl_python/output_formatter.py` (jsonlines by default, server-sent events on
request).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.serve.fields import Fields, type_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Mapping


JSONLINES = "application/jsonlines"
EVENT_STREAM = "text/event-stream"
_MAX_PROMPTS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """
    A checked request.

    Args:
        inputs: One prompt or several.
        parameters: LMI's generation parameters; the handler checks them.
        stream: Whether tokens are sent as they come.
    """

    inputs: str | list[str]
    parameters: dict[str, Any]
    stream: bool


def read_invocation(document: dict[str, Any]) -> Invocation:
    """
    Check a request.

    Raises:
        Refused: With the field at fault.
    """
    top = Fields(document)
    top.only(("inputs", "parameters", "stream"))
    if "inputs" not in document:
        top.refuse("inputs", "is missing", code="missing_field")
    value = document["inputs"]
    options = top.mapping("parameters")
    # LMI's clients send `stream` in either place.
    stream = top.flag("stream", default=options.flag("stream", default=False))
    parameters = {k: v for k, v in options.document.items() if k != "stream"}
    if isinstance(value, str):
        inputs: str | list[str] = top.text("inputs")
    elif not isinstance(value, list) or not value:
        top.refuse("inputs", f"must be a string or strings, it is {type_name(value)}")
    elif len(value) > _MAX_PROMPTS:
        top.refuse(
            "inputs", f"has {len(value)} prompts, at most {_MAX_PROMPTS} are taken"
        )
    elif stream:
        top.refuse("inputs", "must be one string when `stream` is true")
    else:
        inputs = [
            top.checked_text(f"inputs[{index}]", row) for index, row in enumerate(value)
        ]
    return Invocation(inputs=inputs, parameters=parameters, stream=stream)


async def encoded_lines(
    stream: AsyncIterable[Mapping[str, Any]], *, events: bool
) -> AsyncIterator[bytes]:
    """
    The handler's lines as bytes.

    Args:
        stream: The generation.
        events: Server-sent events instead of plain lines.
    """
    async for line in stream:
        text = json.dumps(line, ensure_ascii=False).encode()
        yield b"data: " + text + b"\n\n" if events else text + b"\n"
