"""
An S3 server on this machine for simulated jobs, in memory.

It is moto's, over real HTTP; other services that a job asks (Secrets Manager, the
parameter store) answer there too. It can throttle as S3 does.
"""

from __future__ import annotations

import io
import logging
import random
import re
import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from lmi_build.errors import ToolMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# S3 answers so when a prefix gets more requests than it can take.
_SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code>"
    b"<Message>Please reduce your request rate.</Message></Error>"
)
THROTTLED_SHARE = 0.2
# What the server asks nobody for; a client must have something to sign with.
# Values that occur nowhere else: secrets are blotted out wherever they are printed.
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIASIMULATEDSIMULAT",
    "AWS_SECRET_ACCESS_KEY": "opens-nothing-but-the-simulation",
}
REGION = "us-east-1"


@contextmanager
def s3_server(*, throttled: bool = False) -> Iterator[str]:
    """
    Serve until the end of the block.

    Args:
        throttled: Whether a fifth of the requests is answered with 503 SlowDown.

    Yields:
        Its address.

    Raises:
        ToolMissing: `job.no-simulator`: moto is not installed.
    """
    try:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            create_backend_app,
        )
        from werkzeug.serving import make_server
    except ImportError as error:
        raise ToolMissing(
            f"an S3 server on this machine needs moto ({error})",
            code="job.no-simulator",
            hints=(
                "run `pip install 'lmi-build[simulate]'`",
                "or name a server: `--s3 URL`",
            ),
        ) from error
    # A line for every request would drown what the user came to see.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    application: Any = _at_once(DomainDispatcherApplication(create_backend_app))
    if throttled:
        application = _throttle(application)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


def _at_once(application: Any) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    """Let conditional writes through one by one: moto looks, then writes."""
    lock = threading.Lock()

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        conditional = {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & environ.keys()
        if environ["REQUEST_METHOD"] not in {"PUT", "POST"} or not conditional:
            return application(environ, start)  # type: ignore[no-any-return]
        # A slow sender must not hold up the others.
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        with lock:
            return list(application(environ, start))

    return answer


def _conditional(application: Any) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    """Let a conditional write compare and store in one step, as S3 does."""
    lock = threading.Lock()

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        writes = environ["REQUEST_METHOD"] in {"PUT", "POST", "DELETE"}
        with lock if writes else nullcontext():
            answered: Iterable[bytes] = application(environ, start)
            return answered

    return answer


def _throttle(application: Any) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    draw = random.Random(0)  # noqa: S311 - which requests, not a secret

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if not _is_s3(environ) or draw.random() >= THROTTLED_SHARE:
            answered: Iterable[bytes] = application(environ, start)
            return answered
        # An unread body would be taken for the next request.
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        length = ("Content-Length", str(len(_SLOW_DOWN)))
        start("503 Slow Down", [("Content-Type", "application/xml"), length])
        return [_SLOW_DOWN]

    return answer


def _is_s3(environ: dict[str, Any]) -> bool:
    signed_for = re.search(
        r"/([a-z0-9-]+)/aws4_request", environ.get("HTTP_AUTHORIZATION", "")
    )
    return signed_for is not None and signed_for[1] == "s3"
