"""Starting and stopping the server around one artifact."""

from __future__ import annotations

import errno
import json
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.errors import ToolMissing, UsageInvalid
from lmi_build.package.engine import load_engine
from lmi_build.verify.integrity import refuse_if_damaged

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from lmi_build.package.engine import Loaded
    from lmi_build.values.manifest import Manifest

_MAX_PORT = 65535
# Seconds that running answers get to finish once the server is told to stop.
_GRACE_SECONDS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """
    A server that accepts requests.

    Args:
        name: The model's name.
        digest: The artifact's identity.
        url: Where it listens.
    """

    name: str
    digest: str
    url: str


def announce(ready: Ready) -> None:
    """Tell people on stderr and programs on stdout."""
    row = {"name": ready.name, "digest": ready.digest, "url": ready.url}
    sys.stderr.write(f"serving {ready.name} at {ready.url}\n")
    sys.stderr.flush()
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def serve(
    root: Path,
    host: str,
    port: int,
    *,
    on_ready: Callable[[Ready], None] = announce,
    grace_seconds: int = _GRACE_SECONDS,
) -> None:
    """
    Serve an artifact until the process is told to stop.

    SIGTERM and SIGINT let running answers finish; a second one does not wait.

    Args:
        root: Folder of the artifact; every hash is checked before its code runs.
        host: Address to listen on.
        port: 0 takes a free one.
        on_ready: Called once, when requests are accepted.
        grace_seconds: What running answers get to finish.

    Raises:
        UsageInvalid: `server.bad-port`, `server.cannot-listen`.
        ToolMissing: `server.library-missing`, `package.runtime-missing`.
        VerifyFailed: The artifact is broken.
    """
    try:
        import uvicorn

        from lmi_build.serve.app import Service, make_app
        from lmi_build.serve.loop import Server
    except ImportError as error:
        raise ToolMissing(
            f"serving needs `{error.name}`, which is not installed",
            code="server.library-missing",
            hints=("pip install 'lmi-build[serve]'",),
        ) from error
    listening = listen(host, port)
    with listening:
        manifest = refuse_if_damaged(root)
        loaded, thread = _load(root, manifest)
        service = Service(loaded, manifest, thread=thread)
        config = uvicorn.Config(
            make_app(service, loaded),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=grace_seconds,
        )
        ready = Ready(
            name=manifest.name, digest=manifest.digest, url=_url(host, listening)
        )
        server = Server(config, lambda: on_ready(ready))
        try:
            server.run(sockets=[listening])
        finally:
            service.answers.close()


def _load(root: Path, manifest: Manifest) -> tuple[Loaded, ThreadPoolExecutor]:
    """The engine, and the thread that loaded it and is to compute with it."""
    from lmi_build.serve.room import make_thread

    thread = make_thread()
    try:
        return thread.submit(load_engine, root, manifest).result(), thread
    except BaseException:
        thread.shutdown(wait=False)
        raise


def listen(host: str, port: int) -> socket.socket:
    """
    Open the listening socket, before anything slow is done.

    Raises:
        UsageInvalid: `server.bad-port`, `server.cannot-listen`.
    """
    if not 0 <= port <= _MAX_PORT:
        raise UsageInvalid(
            f"port {port} is not between 0 and {_MAX_PORT}",
            code="server.bad-port",
            hints=("use `--port 0` for any free port",),
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise _cannot_listen(host, port, error) from error
    return opened


def _cannot_listen(host: str, port: int, error: OSError) -> UsageInvalid:
    hints = {
        errno.EADDRINUSE: "it is taken by another process: `--port 0` finds one",
        errno.EACCES: "ports below 1024 need privileges: use a higher one",
    }
    other = "use `--host 127.0.0.1`, or `--host 0.0.0.0` for every interface"
    return UsageInvalid(
        f"cannot listen on {host}:{port}: {error.strerror or error}",
        code="server.cannot-listen",
        hints=(hints.get(error.errno or 0, other),),
    )


def _url(host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
