"""An environment of its own for another tool, made from that tool's pins."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_venv(venv: Path, requirements: Path) -> Path:
    """
    The environment's `bin` folder; installs it when the pins have changed.

    torch is installed first and alone, so that nothing that needs it can choose a
    build for a GPU that is not there, and so that packages which are built from source
    (without isolation) find it.
    """
    stamp = venv / "installed.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {requirements.name} into {venv}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pip = [str(venv / "bin/pip"), "install", "--quiet"]
        lines = requirements.read_text().splitlines()
        torch = next(line for line in lines if line.startswith("torch=="))
        subprocess.run([*pip, torch, "setuptools", "wheel"], check=True)
        rest = ["--no-build-isolation", "--requirement", str(requirements)]
        subprocess.run([*pip, *rest], check=True)
        stamp.write_text(wanted)
    return venv / "bin"
