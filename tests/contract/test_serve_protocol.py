"""
The HTTP protocol, over a real socket, around a handler without weights.

The handler is a fake at the `Engine` protocol, so every answer is known beforehand;
`tests/e2e` runs the same server around a compiled model.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from packed import echo_artifact
from served import JSON, Answer, Client, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A running server; at the end it must stop by SIGTERM with status 0."""
    root = tmp_path_factory.mktemp("artifact")
    echo_artifact(root, architecture=platform.machine())
    process = start(root)
    assert process.stdout is not None
    line = process.stdout.readline()
    ready = json.loads(line)
    yield Client(process, urlsplit(ready["url"]).port or 0)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.startswith("serving sample at http://127.0.0.1:")


def _events(answer: Answer) -> list[Any]:
    """Server-sent events, each exactly `data: ...` and a blank line."""
    parts = answer.body.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    payloads = [part.removeprefix("data: ") for part in parts]
    return [p if p == "[DONE]" else json.loads(p) for p in payloads]


def test_ping(client: Client) -> None:
    """SageMaker asks this until it gets a 200."""
    assert client.ask("GET", "/ping").status == 200


def test_models(client: Client) -> None:
    """The one model is listed with its bound; others are not there."""
    listed = client.ask("GET", "/v1/models").json["data"]

    assert [(row["id"], row["max_model_len"]) for row in listed] == [("sample", 96)]
    assert client.ask("GET", "/v1/models/sample").json["id"] == "sample"
    assert client.ask("GET", "/v1/models/other").status == 404


def test_invocations_one_and_many(client: Client) -> None:
    """A string gives an object, strings give an array, as in LMI."""
    parameters = {"max_new_tokens": 4}
    one = client.invoke({"inputs": "abc", "parameters": parameters})
    many = client.invoke({"inputs": ["abc", "xy"], "parameters": parameters})

    assert one.json == {"generated_text": "ABCA"}
    assert [row["generated_text"] for row in many.json] == ["ABCA", "XYXY"]


def test_invocations_stream_lines(client: Client) -> None:
    """One JSON line a token; the last has the whole text and the details."""
    answer = client.invoke(
        {
            "inputs": "abc",
            "parameters": {"max_new_tokens": 3, "details": True},
            "stream": True,
        }
    )
    lines = [json.loads(line) for line in answer.body.splitlines()]

    assert answer.headers["content-type"] == "application/jsonlines"
    assert [line["token"]["text"] for line in lines] == ["A", "B", "C"]
    assert set(lines[0]["token"]) == {"id", "text", "log_prob"}
    assert "generated_text" not in lines[1]
    assert lines[2]["generated_text"] == "ABC"
    assert lines[2]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 3,
        "inputs": "abc",
    }


def test_invocations_stream_events(client: Client) -> None:
    """A client that accepts events gets events."""
    headers = {**JSON, "accept": "text/event-stream"}
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 2}, "stream": True}
    answer = client.ask("POST", "/invocations", body, headers)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [event["token"]["text"] for event in _events(answer)] == ["A", "B"]


def test_invocations_take_a_chat(client: Client) -> None:
    """A body with messages is answered as a chat, as LMI does."""
    answer = client.invoke({"messages": [{"role": "user", "content": "x"}]})

    assert answer.json["object"] == "chat.completion"


def test_chat(client: Client) -> None:
    """OpenAI's object: choices, usage, finish reason."""
    document = client.chat("hi", model="sample", max_tokens=7).json
    choice = document["choices"][0]

    assert document["object"] == "chat.completion"
    assert document["model"] == "sample"
    assert choice["message"] == {"role": "assistant", "content": "USER:HI"}
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    assert document["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": 7,
        "total_tokens": 15,
    }


def test_chat_stream(client: Client) -> None:
    """Role first, then text, a finish reason, the usage if asked for, [DONE]."""
    answer = client.chat(
        "hi", max_tokens=3, stream=True, stream_options={"include_usage": True}
    )
    *chunks, usage, done = _events(answer)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]

    assert done == "[DONE]"
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == "USE"
    assert reasons == [None, None, None, "length"]
    assert usage["usage"]["total_tokens"] == 11
    assert usage["choices"] == []
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)


def test_chat_takes_every_supported_field(client: Client) -> None:
    """Fields that work, and neutral values of those that do not, are accepted."""
    answer = client.chat(
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],  # type: ignore[arg-type]
        max_tokens=None,
        max_completion_tokens=2,
        temperature=0.7,
        top_p=0.9,
        seed=3,
        stop=["x"],
        n=1,
        user="somebody",
        logprobs=True,
        tools=[],
        frequency_penalty=0.0,
        response_format={"type": "text"},
    )

    assert answer.status == 200
    rows = answer.json["choices"][0]["logprobs"]["content"]
    assert [row["logprob"] for row in rows] == [-0.5, -0.5]


def test_over_bound_requests_name_the_bound(client: Client) -> None:
    """4xx with the bound and the number, in each API's own form."""
    long = client.invoke({"inputs": "x" * 65})
    many = client.invoke({"inputs": "x", "parameters": {"max_new_tokens": 33}})
    chat = client.chat("x" * 100)
    stream = client.chat("x", max_tokens=33, stream=True)

    for answer, bound in ((long, "64"), (many, "32")):
        assert answer.status == 413
        assert bound in answer.json["error"]
        assert answer.json["code"] == 413
    for answer, bound in ((chat, "max_input_len is 64"), (stream, "32")):
        assert answer.status == 400
        assert answer.json["error"]["code"] == "bound_exceeded"
        assert bound in answer.json["error"]["message"]


BAD_BODIES: list[bytes] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"3",
    b"\xff\xfe",
    b'{"inputs": NaN}',
    b'{"inputs": "\\ud800"}',
    b'{"inputs": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
]


@pytest.mark.parametrize("path", ["/invocations", "/v1/chat/completions"])
@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_malformed_bodies_get_400(client: Client, path: str, body: bytes) -> None:
    """Nothing that is sent makes the server fail."""
    answer = client.ask("POST", path, body)

    assert answer.status == 400
    assert answer.json["error"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": None},
        {"inputs": 3},
        {"inputs": []},
        {"inputs": ["a", 3]},
        {"inputs": ["a"] * 65},
        {"inputs": {"text": "a"}},
        {"inputs": "a", "parameters": []},
        {"inputs": "a", "stream": "yes"},
        {"inputs": "a", "unknown": 1},
        {"inputs": ["a"], "stream": True},
        {"inputs": "a", "parameters": {"bogus": 1}},
        {"inputs": ""},
    ],
    ids=str,
)
def test_wrong_invocations_get_400(client: Client, body: object) -> None:
    """Wrong types and unknown fields are refused in words."""
    answer = client.invoke(body)

    assert answer.status == 400
    assert isinstance(answer.json["error"], str)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "a", "x": 1}]}, "messages[0].x"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 70}, "seed"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"model": "gpt"}, "model"),
        ({"n": 2}, "n"),
        ({"tools": [{}]}, "tools"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temprature": 1}, "temprature"),
    ],
    ids=str,
)
def test_wrong_chats_get_400_and_name_the_field(
    client: Client, fields: dict[str, Any], param: str
) -> None:
    """OpenAI's error object, with the field at fault."""
    answer = client.chat(**fields)

    assert answer.status == 400
    error = answer.json["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"]


def test_misspelt_fields_get_a_suggestion(client: Client) -> None:
    """The nearest known name is offered."""
    error = client.chat(temprature=1).json["error"]

    assert "did you mean `temperature`" in error["message"]


def test_other_content_types_get_415(client: Client) -> None:
    """A form is not JSON, whatever it holds."""
    kind = {"content-type": "application/x-www-form-urlencoded"}
    answer = client.ask("POST", "/invocations", {"inputs": "a"}, kind)

    assert answer.status == 415


def test_content_type_may_have_a_charset(client: Client) -> None:
    """Parameters of the media type are allowed."""
    kind = {"content-type": "Application/JSON; charset=utf-8"}

    assert client.ask("POST", "/invocations", {"inputs": "a"}, kind).status == 200


def test_long_bodies_get_413(client: Client) -> None:
    """Memory is not filled by whoever likes to."""
    answer = client.ask("POST", "/invocations", b'"' + b"x" * (7 << 20))

    assert answer.status == 413


def test_unknown_paths_and_methods_are_json(client: Client) -> None:
    """404 and 405 are errors like any other."""
    assert client.ask("GET", "/nowhere").json["code"] == 404
    assert client.ask("GET", "/invocations").status == 405
    assert client.ask("GET", "/v1/nowhere").json["error"]["code"] == "http"


def test_engine_failure_is_500_and_the_server_lives(client: Client) -> None:
    """A fault of the engine is not blamed on the client, and not fatal."""
    broken = client.invoke({"inputs": "break"})
    stream = client.invoke({"inputs": "break", "stream": True})

    assert broken.status == 500
    assert "broke" not in broken.body.decode()
    assert stream.status == 500
    assert client.invoke({"inputs": "a"}).status == 200


def test_client_that_leaves_frees_the_engine(client: Client) -> None:
    """A broken connection stops its generation; the next request is answered."""
    for _ in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        body = {"inputs": "a", "parameters": {"max_new_tokens": 32}, "stream": True}
        connection.request("POST", "/invocations", json.dumps(body), JSON)
        connection.getresponse().read(10)
        connection.close()

    assert client.invoke({"inputs": "a"}).status == 200


def test_port_in_use_is_a_usage_error(client: Client, tmp_path: Path) -> None:
    """Two servers on one port: the second says which, and how to get another."""
    echo_artifact(tmp_path, architecture=platform.machine())
    process = start(tmp_path, client.port)
    _, errors = process.communicate(timeout=30)

    assert process.returncode != 0
    assert f"cannot listen on 127.0.0.1:{client.port}" in errors


def test_interrupt_ends_quietly(tmp_path: Path) -> None:
    """Ctrl-C is how a server is stopped; it is not an error."""
    echo_artifact(tmp_path, architecture=platform.machine())
    process = start(tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == 0
    assert "Traceback" not in errors
