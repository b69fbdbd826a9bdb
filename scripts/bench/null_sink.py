"""
An S3 server that keeps no data: it measures the client that talks to it.

Bodies are read and dropped; lengths, metadata and small objects are remembered, so
that a publisher can ask for what it sent. Prints `{"url": ...}` and ends with its
standard input.
"""

from __future__ import annotations

import hashlib
import json
import re
import socketserver
import sys
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

_BLOCK_BYTES = 1 << 20
# Manifests and pointers are read back; data is not.
_KEPT_BYTES = 64 << 10


class _State:
    """What the sink remembers."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, dict[str, str]] = {}
        self.small: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], list[int]]] = {}


STATE = _State()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def do_PUT(self) -> None:
        key, query = self._target()
        num_bytes, data = self._drain()
        if "partNumber" in query:
            with STATE.lock:
                STATE.uploads[query["uploadId"][0]][2].append(num_bytes)
        elif not self._allowed(key):
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        elif key.count("/") > 1:
            self._keep(key, self._metadata(), num_bytes)
            if data is not None:
                STATE.small[key] = data
        self._answer(200, headers={"ETag": _tag(key, num_bytes)})

    def do_POST(self) -> None:
        key, query = self._target()
        self._drain()
        if "uploads" in query:
            with STATE.lock:
                upload = f"upload-{len(STATE.uploads)}"
                STATE.uploads[upload] = (key, self._metadata(), [])
            self._xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
            return
        _, metadata, parts = STATE.uploads.pop(query["uploadId"][0])
        self._keep(key, metadata, sum(parts))
        self._xml("CompleteMultipartUploadResult", f"<ETag>{_tag(key, 0)}</ETag>")

    def do_GET(self) -> None:
        key, query = self._target()
        if "uploads" in query:
            self._xml("ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>")
        elif "list-type" in query:
            self._list(key, query.get("prefix", [""])[0])
        elif key in STATE.small:
            data = STATE.small[key]
            modified = STATE.objects[key]["Last-Modified"]
            headers = {"ETag": _tag(key, len(data)), "Last-Modified": modified}
            self._answer(200, data, headers)
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_HEAD(self) -> None:
        key, _ = self._target()
        found = STATE.objects.get(key)
        if found is None:
            self._answer(404 if key.count("/") > 1 else 200)
            return
        self._answer(200, headers=found)

    def _list(self, bucket: str, prefix: str) -> None:
        base = f"{bucket.rstrip('/')}/{prefix}"
        rows = "".join(
            f"<Contents><Key>{key.split('/', 2)[2]}</Key>"
            f"<Size>{found['Content-Length']}</Size></Contents>"
            for key, found in sorted(STATE.objects.items())
            if key.startswith(base)
        )
        self._xml("ListBucketResult", f"<IsTruncated>false</IsTruncated>{rows}")

    def _target(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path), parse_qs(parts.query, keep_blank_values=True)

    def _metadata(self) -> dict[str, str]:
        return {
            k: v for k, v in self.headers.items() if k.lower().startswith("x-amz-meta-")
        }

    def _allowed(self, key: str) -> bool:
        return not (self.headers.get("If-None-Match") == "*" and key in STATE.objects)

    def _keep(self, key: str, metadata: dict[str, str], num_bytes: int) -> None:
        with STATE.lock:
            STATE.objects[key] = {
                "Content-Length": str(num_bytes),
                "ETag": _tag(key, num_bytes),
                "Last-Modified": formatdate(usegmt=True),
                **metadata,
            }

    def _drain(self) -> tuple[int, bytes | None]:
        """Read the body; returns its content's length, and its bytes when small."""
        left = int(self.headers.get("Content-Length") or 0)
        declared = self.headers.get("x-amz-decoded-content-length")
        num_bytes = int(declared) if declared else left
        kept = bytearray()
        block = memoryview(bytearray(_BLOCK_BYTES))
        keep = left <= _KEPT_BYTES
        while left:
            got = self.rfile.readinto(block[: min(left, _BLOCK_BYTES)])
            if not got:
                break
            left -= got
            if keep:
                kept += block[:got]
        return num_bytes, bytes(kept) if keep else None

    def _xml(self, name: str, inner: str) -> None:
        self._answer(200, f'<?xml version="1.0"?><{name}>{inner}</{name}>'.encode())

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        lengths = {"Content-Length": str(len(body)), "Content-Type": "application/xml"}
        for name, value in {**lengths, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


def _tag(key: str, num_bytes: int) -> str:
    plain = re.sub(r"[^a-z0-9]", "", key.lower()) + str(num_bytes)
    return f'"{hashlib.md5(plain.encode(), usedforsecurity=False).hexdigest()}"'


def main() -> int:
    """Serve until standard input ends."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        print(
            json.dumps({"url": f"http://127.0.0.1:{server.server_address[1]}"}),
            flush=True,
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        while sys.stdin.buffer.read(1):
            pass
        server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
