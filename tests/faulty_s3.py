"""
An S3 server for tests: moto over real HTTP, with faults and with its eyes open.

moto accepts any checksum; this one compares every digest that a client sends with the
bytes that arrived, as S3 does, and so refuses what was damaged on the wire. Rules make
it fail in the ways that S3 and networks do, counted and therefore the same every time.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import socket
import threading
import time
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    create_backend_app,
)
from werkzeug.serving import WSGIRequestHandler, make_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

# kind -> (status, S3's code)
_ANSWERS = {
    "slow-down": ("503 Service Unavailable", "SlowDown"),
    "internal-error": ("500 Internal Server Error", "InternalError"),
    "expired-token": ("403 Forbidden", "ExpiredToken"),
    "access-denied": ("403 Forbidden", "AccessDenied"),
    "not-found": ("404 Not Found", "NoSuchKey"),
    "no-upload": ("404 Not Found", "NoSuchUpload"),
    "conflict": ("409 Conflict", "ConditionalRequestConflict"),
    "redirect": ("301 Moved Permanently", "PermanentRedirect"),
    "kms": ("400 Bad Request", "KMS.NotFoundException"),
    "not-implemented": ("501 Not Implemented", "NotImplemented"),
}


@dataclass(kw_only=True)
class Rule:
    """
    A fault.

    Args:
        pattern: Regular expression on `METHOD /path?query`.
        kind: A key of the answers above; or `reset` (no answer), `stall` (a late one),
            `drop-after` (done, but the answer is lost), `corrupt` (a byte of the body
            flips on the way), `unconditional` (conditions are ignored), `cut` (half of
            the answer's body), `call` (only `hook`).
        times: How often it strikes.
        skip: Matching requests that pass before it strikes first.
        seconds: How long a stall lasts.
        hook: Called when it strikes.
    """

    pattern: str
    kind: str
    times: int = 1
    skip: int = 0
    seconds: float = 3.0
    hook: Callable[[], None] | None = None
    struck: int = 0


@dataclass
class FaultyS3:
    """
    A running server; use it in a `with`.

    Args:
        rules: Faults, first match strikes.
        log: `METHOD /path?query` of each request, in order of arrival.
        sent: Bytes of request bodies by `METHOD /path`.
    """

    rules: list[Rule] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    url: str = ""

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        # moto looks and writes in two steps; S3 does both at once.
        self._condition = threading.Lock()
        self._parts: dict[str, dict[int, bytes]] = {}
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def rule(self, pattern: str, kind: str, **more: Any) -> Rule:
        """Add a fault."""
        rule = Rule(pattern=pattern, kind=kind, **more)
        self.rules.append(rule)
        return rule

    def forget(self) -> None:
        """Drop all rules and the log."""
        with self._lock:
            self.rules.clear()
            self.log.clear()
            self.headers.clear()
            self.sent.clear()

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(re.search(pattern, line) is not None for line in self.log)

    def _serve(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        body = _read_body(environ)
        query = environ.get("QUERY_STRING", "")
        path = environ["REQUEST_METHOD"] + " " + environ["PATH_INFO"]
        line = f"{path}?{query}" if query else path
        with self._lock:
            self.log.append(line)
            self.headers.append(_headers(environ))
            self.sent[path] = self.sent.get(path, 0) + len(body)
            rule = self._strike(line)
        kind = rule.kind if rule else ""
        if rule and rule.hook:
            rule.hook()
        if kind in _ANSWERS:
            status, code = _ANSWERS[kind]
            return _refuse(start, status, code, "as a rule of the test says")
        if kind == "reset":
            return _hang_up(environ)
        if kind == "stall" and rule:
            time.sleep(rule.seconds)
        body = _spoiled(kind, environ, body)
        if environ["REQUEST_METHOD"] == "POST" and "uploadId=" in query:
            wrong = self._find_wrong_whole(environ, query, body)
        else:
            self._keep_part(environ["REQUEST_METHOD"], query, body)
            wrong = find_wrong_digest(_headers(environ), body)
        if wrong:
            return _refuse(start, "400 Bad Request", wrong, "digests differ")
        environ["wsgi.input"] = io.BytesIO(body)
        if kind == "drop-after":
            list(self._moto(environ, _swallow))
            return _hang_up(environ)
        answer = self._answer(environ, start)
        if kind == "cut":
            whole = b"".join(answer)
            return _cut(environ, whole[: len(whole) // 2])
        return answer

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """
        Let moto answer.

        A part of an upload that another request ended in between is a KeyError to
        moto; S3 says what it is.
        """
        conditional = {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & environ.keys()
        try:
            with self._condition if conditional else nullcontext():
                found: Iterable[bytes] = self._moto(environ, start)
        except KeyError:
            if "uploadId=" not in environ.get("QUERY_STRING", ""):
                raise
            return _refuse(start, "404 Not Found", "NoSuchUpload", "it has ended")
        return found

    def _strike(self, line: str) -> Rule | None:
        for rule in self.rules:
            if rule.struck >= rule.times or not re.search(rule.pattern, line):
                continue
            if rule.skip:
                rule.skip -= 1
                continue
            rule.struck += 1
            return rule
        return None

    def _keep_part(self, method: str, query: str, body: bytes) -> None:
        values = parse_qs(query)
        if method == "PUT" and "partNumber" in values:
            parts = self._parts.setdefault(values["uploadId"][0], {})
            parts[int(values["partNumber"][0])] = body

    def _find_wrong_whole(
        self, environ: dict[str, Any], query: str, body: bytes
    ) -> str | None:
        """Completing names the checksum of the whole object; moto does not compare."""
        parts = self._parts.get(parse_qs(query)["uploadId"][0], {})
        numbers = [int(n) for n in re.findall(rb"<PartNumber>(\d+)<", body)]
        if any(number not in parts for number in numbers):
            return None
        whole = b"".join(parts[number] for number in numbers)
        headers = _headers(environ)
        size = headers.get("x-amz-mp-object-size")
        if size is not None and int(size) != len(whole):
            return "InvalidRequest"
        return find_wrong_digest(
            {k: v for k, v in headers.items() if k.startswith("x-amz-checksum-crc")},
            whole,
        )


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object, **__: object) -> None:
        """Requests are in `FaultyS3.log`."""


def _spoiled(kind: str, environ: dict[str, Any], body: bytes) -> bytes:
    """The request as a bad wire or a bad server takes it."""
    if kind == "unconditional":
        environ.pop("HTTP_IF_MATCH", None)
        environ.pop("HTTP_IF_NONE_MATCH", None)
    if kind == "corrupt" and body:
        return body[:-1] + bytes([body[-1] ^ 1])
    return body


def _headers(environ: dict[str, Any]) -> dict[str, str]:
    return {
        name[5:].replace("_", "-").lower(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }


def _read_body(environ: dict[str, Any]) -> bytes:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    stream = environ["wsgi.input"]
    data: bytes = stream.read(length) if length else b""
    return data


def find_wrong_digest(headers: dict[str, str], body: bytes) -> str | None:
    """
    S3's error code for the first digest that is not the body's.

    Args:
        headers: Lower-case names.
        body: As it arrived; `aws-chunked` bodies are unwrapped, their trailers count.
    """
    content_sha = headers.get("x-amz-content-sha256", "")
    digests = dict(headers)
    if content_sha.startswith("STREAMING-"):
        body, trailers = unwrap_chunks(body)
        digests |= trailers
        decoded = headers.get("x-amz-decoded-content-length")
        if decoded is not None and int(decoded) != len(body):
            return "IncompleteBody"
    elif content_sha not in {"", "UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()}:
        return "XAmzContentSHA256Mismatch"
    for name, compute in _DIGESTS.items():
        if name in digests and _encode(compute(body)) != digests[name]:
            return "BadDigest"
    return None


def unwrap_chunks(body: bytes) -> tuple[bytes, dict[str, str]]:
    """The content and the trailers of an `aws-chunked` body."""
    stream = io.BytesIO(body)
    content = bytearray()
    while True:
        length = int(stream.readline().split(b";")[0].strip() or b"0", 16)
        if not length:
            break
        content += stream.read(length)
        stream.readline()
    lines = [raw.decode().strip() for raw in stream.readlines()]
    pairs = [line.partition(":") for line in lines if ":" in line]
    return bytes(content), {name.lower(): value.strip() for name, _, value in pairs}


def _encode(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _reflected(width: int, polynomial: int) -> Callable[[bytes], bytes]:
    """A cyclic checksum, bit-reversed, all ones in and out, by its definition."""
    ones = (1 << width) - 1
    table = []
    for index in range(256):
        value = index
        for _ in range(8):
            value = (value >> 1) ^ (polynomial if value & 1 else 0)
        table.append(value)

    def compute(data: bytes) -> bytes:
        value = ones
        for byte in data:
            value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
        return (value ^ ones).to_bytes(width // 8, "big")

    return compute


_DIGESTS: dict[str, Callable[[bytes], bytes]] = {
    "content-md5": lambda data: hashlib.md5(data, usedforsecurity=False).digest(),
    "x-amz-checksum-sha1": lambda d: hashlib.sha1(d, usedforsecurity=False).digest(),
    "x-amz-checksum-sha256": lambda data: hashlib.sha256(data).digest(),
    "x-amz-checksum-crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "x-amz-checksum-crc32c": _reflected(32, 0x82F63B78),
    "x-amz-checksum-crc64nvme": _reflected(64, 0x9A6C9329AC4BC9B5),
}


def _refuse(start: Any, status: str, code: str, message: str) -> list[bytes]:
    xml = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    start(
        status,
        [("Content-Type", "application/xml"), ("Content-Length", str(len(xml)))],
    )
    return [xml]


def _hang_up(environ: dict[str, Any]) -> list[bytes]:
    """
    End the connection without an answer.

    `shutdown` works on the connection itself, whoever else holds the descriptor.
    """
    connection: socket.socket = environ["werkzeug.socket"]
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def _cut(environ: dict[str, Any], half: bytes) -> Iterable[bytes]:
    yield half
    _hang_up(environ)


def _swallow(*_: object) -> Callable[[bytes], object]:
    return lambda _data: None
