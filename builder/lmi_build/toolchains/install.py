"""Making a toolchain's environment, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from lmi_build.errors import (
    DoesNotFit,
    LmiBuildError,
    RemoteFailed,
    ToolMissing,
    Unsupported,
)
from lmi_build.store.files import explaining, locked, remove_tree, write_atomic
from lmi_build.text import join_words
from lmi_build.toolchains.environment import (
    MARKER,
    QUIET_VARIABLES,
    SCHEMA,
    Installed,
    canonical,
    extensions_dir,
    find_installed,
    folder_of,
    lock_path,
    read_installed,
    toolchains_dir,
    wrong_versions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lmi_build.catalog.toolchains import Toolchain
    from lmi_build.values.settings import Settings

    Say = Callable[[str], None]

_TAIL_LINES = 12
# Importing two frameworks from a cold disk took 40 s where it was slowest.
_IMPORT_SECONDS = 300
_PROBE_SECONDS = 30
# What pip and the system say when a server is out of reach.
_NETWORK = re.compile(
    r"name resolution|NewConnectionError|ConnectionError|Max retries exceeded"
    r"|Read timed out|ConnectTimeout|Network is unreachable|Connection refused"
    r"|ProxyError|SSLError|nodename nor servname",
)
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
# These would lead an interpreter, or pip, to packages of somebody else.
_FOREIGN = frozenset(
    {
        "PIP_PREFIX",
        "PIP_REQUIRE_VIRTUALENV",
        "PIP_TARGET",
        "PIP_USER",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
    }
)


def install(
    toolchain: Toolchain,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    say: Say = lambda _line: None,
) -> tuple[Installed, bool]:
    """
    Install a toolchain, unless it is there.

    pip reads its own configuration (indexes, proxies, certificates) as it always does.

    Args:
        toolchain: What to install.
        settings: Where the store is; offline, pip uses no index, only what its
            `find-links` name.
        environ: The user's environment, handed to pip.
        say: Told what is done.

    Returns:
        The environment, and whether it was made now.

    Raises:
        ToolMissing: `toolchain.install` with pip's last lines, `toolchain.python`, or
            `toolchain.imports` when what was installed does not work.
        RemoteFailed: `toolchain.network`.
        DoesNotFit: `store.disk-full`.
    """
    found = find_installed(toolchain, settings)
    if found is not None:
        return found, False
    root = toolchains_dir(settings)
    with explaining("installing a toolchain", root):
        root.mkdir(parents=True, exist_ok=True)
        with locked(lock_path(toolchain.name, settings), wait=False) as mine:
            if mine:
                return _install_locked(toolchain, settings, environ, say)
        say(f"{toolchain.name} is in use or being installed elsewhere; waiting")
        with locked(lock_path(toolchain.name, settings)):
            return _install_locked(toolchain, settings, environ, say)


def _install_locked(
    toolchain: Toolchain, settings: Settings, environ: Mapping[str, str], say: Say
) -> tuple[Installed, bool]:
    found = find_installed(toolchain, settings)
    if found is not None:
        return found, False
    folder = folder_of(toolchain, settings)
    partial = folder.with_name(f".partial-{folder.name}")
    log = toolchains_dir(settings) / f"{folder.name}.log"
    _sweep(toolchain.name, settings)
    started = time.monotonic()
    clean = {k: v for k, v in environ.items() if k not in _FOREIGN}
    clean |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    if settings.offline:
        clean["PIP_NO_INDEX"] = "1"
    try:
        python = find_python(toolchain, clean)
        with log.open("wb"):
            pass
        say(f"making an environment for {toolchain.name}; the log is {log}")
        _run([python, "-m", "venv", str(partial)], clean, log, toolchain)
        _pip(toolchain, partial, clean, log, say)
        say(f"importing {', '.join(toolchain.imports)}")
        _try_imports(toolchain, partial, settings, log)
        _finish(toolchain, partial, folder, seconds=time.monotonic() - started)
    except BaseException:
        remove_tree(partial)
        raise
    made = read_installed(folder)
    if made is None:
        raise RuntimeError(f"{folder} was just made and cannot be read")
    return made, True


def _sweep(name: str, settings: Settings) -> None:
    """Remove what stopped installs and removals left, and a damaged environment."""
    root = toolchains_dir(settings)
    for pattern in (f".partial-{name}-*", f".removed-{name}-*", f"{name}-*"):
        for path in root.glob(pattern):
            if path.is_dir() and read_installed(path) is None and _is_of(path, name):
                remove_tree(path)


def _is_of(path: Path, name: str) -> bool:
    """Whether a folder is this toolchain's, and not one's whose name begins so."""
    return re.fullmatch(rf"(\.\w+-)?{re.escape(name)}-[0-9a-f]+", path.name) is not None


def find_python(toolchain: Toolchain, environ: Mapping[str, str]) -> str:
    """
    An interpreter of a version that the toolchain can have; this one, if it fits.

    Raises:
        Unsupported: `toolchain.python`.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here in toolchain.python:
        return sys.executable
    for version in toolchain.python:
        path = shutil.which(f"python{version}", path=environ.get("PATH"))
        if path is not None and _python_version(path, environ) == version:
            return path
    able = join_words([f"Python {version}" for version in toolchain.python])
    raise Unsupported(
        f"the toolchain `{toolchain.name}` needs {able}; this is Python {here}, and no"
        " other is on the path",
        code="toolchain.python",
        hints=(f"install {able}, so that `python{toolchain.python[0]}` starts it",),
    )


def _python_version(path: str, environ: Mapping[str, str]) -> str:
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [path, "-c", code],
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _pip(
    toolchain: Toolchain, partial: Path, environ: Mapping[str, str], log: Path, say: Say
) -> None:
    constraints = partial / "constraints.txt"
    every = [package for step in toolchain.steps for package in step.packages]
    python = str(partial / "bin" / "python")
    for number, step in enumerate(toolchain.steps, start=1):
        packages = ", ".join(step.packages)
        say(f"step {number} of {len(toolchain.steps)}: {packages}")
        others = [package for package in every if package not in step.packages]
        constraints.write_text("\n".join([*others, *toolchain.lock, ""]), "utf-8")
        command = [python, "-m", "pip", "install", "-c", str(constraints)]
        command += ["--no-deps"] if step.no_deps else []
        _run([*command, *step.packages], environ, log, toolchain)


def _run(
    command: list[str], environ: Mapping[str, str], log: Path, toolchain: Toolchain
) -> None:
    """Run one command with its output in the log."""
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
        raise _failure(toolchain, log, done.returncode)


def _failure(toolchain: Toolchain, log: Path, status: int) -> LmiBuildError:
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
    return ToolMissing(
        f"{message}: pip ended with status {status}\n{tail}",
        code="toolchain.install",
        hints=("check which indexes pip uses: `pip config list`", where),
    )


def _try_imports(
    toolchain: Toolchain, partial: Path, settings: Settings, log: Path
) -> None:
    failure = import_failure(partial / "bin" / "python", toolchain, settings)
    if failure:
        raise ToolMissing(
            f"the toolchain `{toolchain.name}` was installed and does not work:"
            f" {failure}",
            code="toolchain.imports",
            hints=(f"the log has what was installed: {log}",),
        )


def import_failure(python: Path, toolchain: Toolchain, settings: Settings) -> str:
    """
    Import the modules in a fresh process, as a worker would.

    Returns:
        The last line of what went wrong, or nothing.
    """
    code = "\n".join(f"import {name}" for name in toolchain.imports)
    try:
        done = subprocess.run(
            [str(python), "-c", code],
            env={**settings.worker_environment, **QUIET_VARIABLES},
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"importing took longer than {_IMPORT_SECONDS} s"
    except OSError as error:
        return f"{python}: {error.strerror}"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


def environment_versions(python: Path) -> dict[str, str]:
    """Every package that an environment holds, by what its metadata say."""
    code = (
        "import json; from importlib.metadata import distributions;"
        "print(json.dumps({d.metadata['Name']: d.version for d in distributions()}))"
    )
    done = subprocess.run(
        [str(python), "-I", "-c", code], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return {canonical(name): version for name, version in sorted(found.items())}


def _finish(
    toolchain: Toolchain, partial: Path, folder: Path, *, seconds: float
) -> None:
    """Write the marker and give the environment its name, in one step."""
    python = partial / "bin" / "python"
    versions = environment_versions(python)
    wrong = wrong_versions(toolchain, versions)
    if wrong:
        raise ToolMissing(
            f"pip installed other versions than were asked for: {wrong}",
            code="toolchain.install",
            hints=("check which indexes pip uses: `pip config list`",),
        )
    _move_scripts(partial, folder)
    document = {
        "schema": SCHEMA,
        "name": toolchain.name,
        "digest": toolchain.digest,
        "pins": toolchain.pins,
        "python": _python_version(str(python), {}),
        "versions": versions,
        "num_bytes": tree_bytes(partial),
        "seconds": round(seconds, 1),
    }
    write_atomic(
        partial / MARKER, json.dumps(document, indent=1, sort_keys=True).encode()
    )
    partial.rename(folder)


def _move_scripts(partial: Path, folder: Path) -> None:
    """Let the first lines of scripts name the interpreter's final place."""
    before, after = str(partial).encode(), str(folder).encode()
    for path in (partial / "bin").iterdir():
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if before in data and b"\0" not in data:
            path.write_bytes(data.replace(before, after))


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(
        os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 - one call per file
        for place, _, names in os.walk(folder)
        for name in names
    )


def remove(toolchain: Toolchain, settings: Settings) -> int:
    """
    Remove every environment of a toolchain, whichever pins it has.

    Returns:
        Bytes freed.

    Raises:
        ToolMissing: `toolchain.in-use`, while a worker runs in it.
    """
    root = toolchains_dir(settings)
    if not root.is_dir():
        return 0
    with (
        explaining("removing a toolchain", root),
        locked(lock_path(toolchain.name, settings), wait=False) as mine,
    ):
        if not mine:
            raise ToolMissing(
                f"the toolchain `{toolchain.name}` is in use",
                code="toolchain.in-use",
                hints=("wait for the build or the install that uses it",),
            )
        freed = 0
        for path in [p for p in root.iterdir() if _is_of(p, toolchain.name)]:
            freed += tree_bytes(path)
            gone = path.with_name(f".removed-{path.name.lstrip('.')}")
            if not path.name.startswith("."):
                path.rename(gone)
                path = gone  # noqa: PLW2901 - what is left to delete
            remove_tree(path)
        for log in root.glob(f"{toolchain.name}-*.log"):
            log.unlink()
        remove_tree(extensions_dir(toolchain.name, settings))
        return freed
