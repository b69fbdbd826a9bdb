"""One stage in a real worker process, for tests that need what it makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from lmi_build.errors import error_from_json
from lmi_build.events import Event, from_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.spi import Params


def run_stage(
    entry: str, params: Params, inputs: Mapping[str, Path], out: Path
) -> list[Event]:
    """
    Run `entry` as a build would; returns its events.

    Raises:
        LmiBuildError: What the worker reported.
    """
    out.mkdir(parents=True)
    state = out.with_name(f"{out.name}.state")
    state.mkdir()
    reading, writing = os.pipe()
    request = {
        "stage": out.name,
        "entry": entry,
        "params": params,
        "inputs": {role: str(path) for role, path in inputs.items()},
        "out": str(out),
        "state": str(state),
        "settings": {},
        "events_fd": writing,
    }
    file = state / "request.json"
    file.write_text(json.dumps(request))
    process = subprocess.Popen(
        [sys.executable, "-m", "lmi_build.worker", str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(writing,),
    )
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as channel:
        lines: list[dict[str, Any]] = [json.loads(line) for line in channel]
    # The worker lives as long as its standard input, which is ours, stays open.
    assert process.stdout is not None
    log = process.stdout.read().decode(errors="replace")
    assert process.stdin is not None
    process.stdin.close()
    process.stdout.close()
    status = process.wait(timeout=60)
    for line in lines:
        if "error" in line:
            raise error_from_json(line["error"])
    assert status == 0, log
    return [from_json(json.dumps(line)) for line in lines]
