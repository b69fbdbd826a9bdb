"""A server process around an artifact, and a client, for tests."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SERVE = (
    "import sys; from pathlib import Path; from lmi_build.serve.server import serve;"
    "serve(Path(sys.argv[1]), '127.0.0.1', int(sys.argv[2]))"
)
JSON = {"content-type": "application/json"}


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Client:
    """Talks to the server process."""

    process: subprocess.Popen[str]
    port: int

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send one request; bytes go as they are, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(
            method, path, None if body is None else data, headers or JSON
        )
        response = connection.getresponse()
        found = Answer(response.status, dict(response.getheaders()), response.read())
        connection.close()
        return found

    def invoke(self, body: object) -> Answer:
        """LMI's endpoint."""
        return self.ask("POST", "/invocations", body)

    def chat(self, text: str = "hello", **fields: Any) -> Answer:
        """OpenAI's endpoint with one user message."""
        messages = [{"role": "user", "content": text}]
        document = {"messages": messages, "max_tokens": 5, **fields}
        return self.ask("POST", "/v1/chat/completions", document)


def start(root: Path, port: int = 0) -> subprocess.Popen[str]:
    """A server of its own process; its first line on stdout says where."""
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, str(root), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
