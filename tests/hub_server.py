"""
A model hub on this machine: the part of the hub's HTTP interface that we use.

It speaks `/api/models/<repo>/revision/<rev>` and `/<repo>/resolve/<rev>/<file>`, and
the same of `datasets`, over real sockets, keeps count of what it served, and
misbehaves when told to. A data set's name starts with `datasets/` here.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_made_up_for_tests"
_LFS = (".safetensors", ".model", ".bin", ".parquet", ".gz")
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?\Z")
_RESOLVE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)\Z")


@dataclass
class Rule:
    """
    One fault.

    Args:
        match: Part of the path it applies to.
        kind: `503`, `gated`, `unauthorized`, `drop` (close after `after` bytes),
            `no-range` (answer 200 to a range), `flip` (one wrong byte).
        times: How often.
        after: Bytes of the body sent before a drop.
    """

    match: str
    kind: str
    times: int = 1
    after: int = 0


@dataclass
class Hub:
    """
    What the server has, and what happened to it.

    Args:
        repos: Name to files by path.
        branches: Branch to commit, of every repository.
        rules: Faults still to come.
        served: Body bytes sent, by file.
        requests: `METHOD path`, in order.
        tokens: Every `Authorization` header seen.
    """

    repos: dict[str, dict[str, bytes]]
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    rules: list[Rule] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take_rule(self, path: str) -> Rule | None:
        """The next fault for a path."""
        with self.lock:
            for rule in self.rules:
                if rule.times > 0 and rule.match in path:
                    rule.times -= 1
                    return rule
        return None


@contextmanager
def serve_hub(repos: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    hub = Hub(repos={name: dict(files) for name, files in repos.items()})
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def git_blob_id(data: bytes) -> str:
    """The id git gives a file's content."""
    return hashlib.sha1(
        b"blob %d\0" % len(data) + data, usedforsecurity=False
    ).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            self.hub.tokens.add(self.headers.get("Authorization", ""))
        rule = self.hub.take_rule(path)
        if rule is not None and rule.kind in {"503", "gated", "unauthorized"}:
            self._refuse(rule.kind)
        elif match := _API.match(path):
            place = "datasets/" if match[1] == "datasets" else ""
            self._info(place + match[2], match[3] or "main")
        elif match := _RESOLVE.match(path):
            self._file(match, rule, with_body=with_body)
        else:
            self._error(404, "EntryNotFound")

    def _refuse(self, kind: str) -> None:
        status, code = {
            "503": (503, ""),
            "gated": (403, "GatedRepo"),
            "unauthorized": (401, "RepoNotFound"),
        }[kind]
        self._error(status, code)

    def _error(self, status: int, code: str) -> None:
        body = b'{"error": "no"}'
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "no")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _commit(self, repo: str, revision: str) -> str | None:
        if repo not in self.hub.repos:
            self._error(404, "RepoNotFound")
            return None
        commit = self.hub.branches.get(revision, revision)
        if commit not in self.hub.branches.values():
            self._error(404, "RevisionNotFound")
            return None
        return commit

    def _info(self, repo: str, revision: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        siblings = []
        for name, data in self.hub.repos[repo].items():
            entry: dict[str, Any] = {
                "rfilename": name,
                "size": len(data),
                "blobId": git_blob_id(data),
            }
            if name.endswith(_LFS):
                sha = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        body = json.dumps(
            {
                "id": repo.removeprefix("datasets/"),
                "modelId": repo,
                "sha": commit,
                "siblings": siblings,
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(
        self, match: re.Match[str], rule: Rule | None, *, with_body: bool
    ) -> None:
        commit = self._commit(match[1], match[2])
        if commit is None:
            return
        data = self.hub.repos[match[1]].get(match[3])
        if data is None:
            self._error(404, "EntryNotFound")
            return
        kind = rule.kind if rule is not None else ""
        first, last = 0, len(data) - 1
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and kind != "no-range":
            first = int(wanted[1])
            last = min(int(wanted[2]) if wanted[2] else last, last)
            if first > last:
                self._error(416, "")
                return
        body = data[first : last + 1]
        if kind == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(206 if wanted and kind != "no-range" else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{git_blob_id(data)}"')
        if match[3].endswith(_LFS):
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if not with_body:
            return
        if kind == "drop":
            assert rule is not None
            body = body[: rule.after]
        # Counted first: the client may be done before this thread goes on.
        with self.hub.lock:
            self.hub.served[match[3]] += len(body)
        self.wfile.write(body)
        if kind == "drop":
            self._reset()

    def _reset(self) -> None:
        """Break the connection off after what was written has arrived."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 2)
        )
        self.connection.shutdown(socket.SHUT_WR)
