"""
Batching in flight over a real socket; a step takes a few milliseconds.

The engine refuses to compute in another thread than the one that loaded it: threads of
OpenMP that two threads own get into each other's way.
"""

from __future__ import annotations

import http.client
import json
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from lmi_build.values.bounds import Bounds
from packed import bounds_document, echo_artifact
from served import JSON, Client, start
from tiny_engines import tiny_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 0.005
BOUNDS = Bounds(max_input_len=64, max_output_len=32, max_batch_size=3)
PROMPTS = ["the cat", "a", "on the mat, she sat.", "why not", "zebra. ", "so it goes"]
LONG = {"max_new_tokens": 32, "repetition_penalty": 1.3}


def started(root: Path) -> tuple[subprocess.Popen[str], Client]:
    """A server process that answers."""
    echo_artifact(
        root,
        architecture=platform.machine(),
        handler_name="slots_handler",
        bounds=BOUNDS,
        seconds=SECONDS,
        one_thread=True,
    )
    process = start(root)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    return process, Client(process, urlsplit(ready["url"]).port or 0)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A running server, stopped by SIGTERM."""
    process, client = started(tmp_path_factory.mktemp("artifact"))
    yield client
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same engine, without a server."""
    return tiny_engine(
        tmp_path_factory.mktemp("engine"), bounds=bounds_document(BOUNDS)
    )


def test_concurrent_requests_get_their_own_answers(client: Client, engine: Any) -> None:
    """Two to a prompt, of every kind, all at once."""
    sampled = {**LONG, "temperature": 0.9, "seed": 4, "details": True}

    def ask(number: int) -> Any:
        prompt = PROMPTS[number % len(PROMPTS)]
        parameters = sampled if number % 2 else LONG
        stream = number >= len(PROMPTS)
        answer = client.invoke(
            {"inputs": prompt, "parameters": parameters, "stream": stream}
        )
        assert answer.status == 200
        if stream:
            lines = [json.loads(line) for line in answer.body.splitlines()]
            assert lines == list(engine_lines[number])
        else:
            assert answer.json == engine_answers[number]
        return answer.status

    numbers = range(2 * len(PROMPTS))
    engine_answers, engine_lines = {}, {}
    for number in numbers:
        prompt = PROMPTS[number % len(PROMPTS)]
        parameters = sampled if number % 2 else LONG
        engine_answers[number] = engine.generate(prompt, parameters)
        engine_lines[number] = list(engine.lines(prompt, parameters))
    with ThreadPoolExecutor(len(numbers)) as pool:
        assert list(pool.map(ask, numbers)) == [200] * len(numbers)


def test_a_chat_beside_a_list(client: Client, engine: Any) -> None:
    """OpenAI's schema and LMI's lists share the batch."""
    with ThreadPoolExecutor(2) as pool:
        chat = pool.submit(client.chat, "why not", max_tokens=20, logprobs=True)
        rows = pool.submit(
            client.invoke, {"inputs": PROMPTS[:3], "parameters": LONG}
        ).result()
    steps = list(engine.stream(engine.encode("why not"), {"max_new_tokens": 20}))
    choice = chat.result().json["choices"][0]

    assert choice["message"]["content"] == "".join(step.text for step in steps)
    assert [row["logprob"] for row in choice["logprobs"]["content"]] == [
        step.logprob for step in steps
    ]
    assert rows.json == engine.generate(PROMPTS[:3], LONG)


def test_over_bound_lists_get_413(client: Client) -> None:
    """One prompt more than there are slots."""
    answer = client.invoke({"inputs": ["a"] * 4, "parameters": LONG})

    assert answer.status == 413
    assert "max_batch_size = 3" in answer.json["error"]


def _leave(client: Client, *, stream: bool) -> None:
    """Ask for a long answer and hang up."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    body = {"inputs": "a", "parameters": LONG, "stream": stream}
    connection.request("POST", "/invocations", json.dumps(body), JSON)
    if stream:
        connection.getresponse().read(10)
    else:
        time.sleep(2 * SECONDS)
    connection.close()


@pytest.mark.parametrize("kind", ["stream", "whole"])
def test_clients_that_leave_fill_nothing(client: Client, kind: str) -> None:
    """Many more than slots and queue take, one after another; each left early."""
    for _ in range(80):
        _leave(client, stream=kind == "stream")

    assert client.invoke({"inputs": "a", "parameters": LONG}).status == 200


def test_too_many_get_503_and_a_time(tmp_path: Path) -> None:
    """The queue's length in the message, and when to come back."""
    process, client = started(tmp_path)
    try:
        with ThreadPoolExecutor(90) as pool:
            answers = list(
                pool.map(
                    lambda _: client.invoke({"inputs": "a", "parameters": LONG}),
                    range(90),
                )
            )
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    refused = [answer for answer in answers if answer.status != 200]

    assert refused
    assert {answer.status for answer in refused} == {503}
    assert "at most 64 may" in refused[0].json["error"]
    assert refused[0].headers["retry-after"] == "2"
    assert process.returncode == 0


def test_running_and_waiting_answers_are_finished_at_the_end(
    tmp_path: Path, engine: Any
) -> None:
    """SIGTERM: nothing that was taken is lost."""
    process, client = started(tmp_path)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = [
            pool.submit(client.invoke, {"inputs": prompt, "parameters": LONG})
            for prompt in PROMPTS
        ]
        time.sleep(10 * SECONDS)
        process.send_signal(signal.SIGTERM)
        found = [answer.result() for answer in answers]
    _, errors = process.communicate(timeout=30)

    assert [row.json for row in found] == [engine.generate(p, LONG) for p in PROMPTS]
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_importing_the_application_loads_no_engine() -> None:
    """`serve` reads its libraries when it starts, and none that computes."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, lmi_build.serve.app; assert 'torch' not in sys.modules",
        ],
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0
