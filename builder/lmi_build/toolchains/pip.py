"""pip, run with a log, and what its last words mean."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from lmi_build.errors import DoesNotFit, LmiBuildError, RemoteFailed, ToolMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lmi_build.catalog.toolchains import Toolchain

_TAIL_LINES = 12
# What pip and the system say when a server is out of reach.
_NETWORK = re.compile(
    r"name resolution|NewConnectionError|ConnectionError|Max retries exceeded"
    r"|Read timed out|ConnectTimeout|Network is unreachable|Connection refused"
    r"|ProxyError|SSLError|nodename nor servname",
)
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")


def install_packages(
    toolchain: Toolchain,
    folder: Path,
    environ: Mapping[str, str],
    log: Path,
    say: Callable[[str], None],
    *,
    offline: bool = False,
) -> None:
    """
    Install a toolchain's packages, step after step.

    Args:
        toolchain: Whose steps; what one step pins constrains the others.
        folder: The environment.
        environ: Variables of pip.
        log: Where its output is added.
        say: Told of each step.
        offline: pip asks no index since `--offline` says so; for the hint.

    Raises:
        ToolMissing: `toolchain.install`.
        RemoteFailed: `toolchain.network`.
        DoesNotFit: `store.disk-full`.
    """
    constraints = folder / "constraints.txt"
    every = [package for step in toolchain.steps for package in step.packages]
    python = str(folder / "bin" / "python")
    for number, step in enumerate(toolchain.steps, start=1):
        packages = ", ".join(step.packages)
        say(f"step {number} of {len(toolchain.steps)}: {packages}")
        others = [package for package in every if package not in step.packages]
        constraints.write_text("\n".join([*others, *toolchain.lock, ""]), "utf-8")
        command = [python, "-m", "pip", "install", "-c", str(constraints)]
        command += ["--no-deps"] if step.no_deps else []
        command += step.packages
        run_logged(command, environ, log, toolchain, offline=offline)


def run_logged(
    command: list[str],
    environ: Mapping[str, str],
    log: Path,
    toolchain: Toolchain,
    *,
    offline: bool = False,
) -> None:
    """
    Run one command with its output added to the log.

    Raises:
        LmiBuildError: As `install_packages` says, by what the log says.
    """
    with log.open("ab") as sink:
        done = subprocess.run(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        raise _failure(toolchain, log, done.returncode, offline=offline)


def _failure(
    toolchain: Toolchain, log: Path, status: int, *, offline: bool
) -> LmiBuildError:
    text = log.read_text("utf-8", "replace")
    tail = "\n".join(f"  | {line}" for line in text.splitlines()[-_TAIL_LINES:])
    message = f"the toolchain `{toolchain.name}` could not be installed"
    where = f"the whole log: {log}"
    if _DISK_FULL.search(text):
        return DoesNotFit(
            f"{message}: no space left\n{tail}",
            code="store.disk-full",
            hints=("free some space, or choose another disk: `--cache-dir DIR`", where),
        )
    if _NETWORK.search(text):
        return RemoteFailed(
            f"{message}: pip could not reach a package index\n{tail}",
            code="toolchain.network",
            hints=("check the network and pip's own configuration", where),
        )
    if offline:
        hint = "leave out `--offline`: with it pip asks no index and takes only what"
        hint += " its own `find-links` names (`pip config list`)"
    else:
        hint = "check which indexes pip uses: `pip config list`"
    return ToolMissing(
        f"{message}: pip ended with status {status}\n{tail}",
        code="toolchain.install",
        hints=(hint, where),
    )
