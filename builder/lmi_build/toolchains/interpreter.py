"""Questions to a Python interpreter, each answered by a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from lmi_build.errors import Unsupported
from lmi_build.text import join_words
from lmi_build.toolchains.environment import QUIET_VARIABLES, canonical

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.catalog.toolchains import Toolchain
    from lmi_build.values.settings import Settings

# Importing two frameworks from a cold disk took 40 s where it was slowest.
_IMPORT_SECONDS = 300
_PROBE_SECONDS = 30


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
        if path is not None and python_version(path, environ) == version:
            return path
    able = join_words([f"Python {version}" for version in toolchain.python])
    raise Unsupported(
        f"the toolchain `{toolchain.name}` needs {able}; this is Python {here}, and no"
        " other is on the path",
        code="toolchain.python",
        hints=(f"install {able}, so that `python{toolchain.python[0]}` starts it",),
    )


def python_version(path: str, environ: Mapping[str, str]) -> str:
    """`3.11`, say; empty where it does not start or cannot make an environment."""
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
