"""The servers that the quickstart and the benchmarks start."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmi_build.events import ignore
from lmi_build.publishers.destination import publish
from lmi_build.values.recipe import PublishSpec
from publishing import QUICK, pack, settings_with_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCRIPTS = Path(__file__).parents[2] / "scripts"
_COMMANDS = {
    "moto": [str(_SCRIPTS / "s3_server.py"), "--bucket", "bench"],
    "sink": [str(_SCRIPTS / "bench" / "null_sink.py")],
}


@pytest.fixture(params=sorted(_COMMANDS))
def started(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, ended if the test did not end it."""
    process = subprocess.Popen(
        [sys.executable, *_COMMANDS[request.param]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        yield process
        process.kill()


def url_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    url: str = json.loads(process.stdout.readline())["url"]
    return url


def test_server_takes_an_artifact_and_ends_with_its_input(
    started: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """It says where it is, accepts a publish, and ends when its input ends."""
    packed = pack(tmp_path / "tree")

    receipt = publish(
        packed.tree,
        manifest_digest=packed.digest,
        name="nm",
        destination=PublishSpec(to="s3://bench/x", endpoint_url=url_of(started)),
        settings=settings_with_keys(tmp_path),
        extra={},
        emit=ignore,
        transfer=QUICK,
    )
    assert receipt.uploaded_bytes == packed.num_bytes
    assert started.stdin is not None
    started.stdin.close()

    assert started.wait(timeout=20) == 0


def test_server_ends_on_sigterm() -> None:
    """The quickstart's server ends cleanly when it is told to."""
    with subprocess.Popen(
        [sys.executable, *_COMMANDS["moto"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        url_of(process)

        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=20) == 0
