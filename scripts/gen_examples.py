"""
Run the README's console examples, and write what they print beneath them.

A block of `console` whose lines begin with `$` is an example. All of them run in order
in one empty folder, without a network; standard output is shown, standard error is not.

`scripts/gen_examples.py` writes; `--check` only compares, and fails when one is stale.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"```console\n(\$ .*?)```", re.DOTALL)
_MAIN = "from lmi_build.cli.main import main; main()"
_SECONDS = 120


def main() -> int:
    """Write or check the README; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    before = README.read_text("utf-8")
    after = with_output(before)
    if before == after:
        return 0
    if check:
        sys.stderr.write("README.md is stale; run scripts/gen_examples.py\n")
        return 1
    README.write_text(after, "utf-8")
    return 0


def with_output(text: str) -> str:
    """
    The same text with what its examples print today.

    Args:
        text: Of the README.
    """
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder)
        for name in ("python", "lmi-build"):
            code = f" -c '{_MAIN}'" if name == "lmi-build" else ""
            program = desk / ".bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{code} "$@"\n')
            program.chmod(0o755)
        (desk / "scripts").symlink_to(ROOT / "scripts")
        return BLOCK.sub(lambda found: _block(found[1], desk), text)


def _block(block: str, desk: Path) -> str:
    """One block with its commands run anew."""
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    made = (f"{line}\n{_run(line[2:], desk)}" for line in commands)
    return f"```console\n{''.join(made)}```"


def _run(command: str, desk: Path) -> str:
    """What a command prints; one that fails is a fault of the README."""
    environment = {
        "PATH": f"{desk / '.bin'}:{os.environ['PATH']}",
        "HOME": str(desk),
        "LMI_BUILD_CACHE": str(desk / ".store"),
        "LMI_BUILD_OFFLINE": "1",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [shutil.which("bash") or "/bin/bash", "-o", "pipefail", "-c", command],
        cwd=desk,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"`{command}` ended with {done.returncode}: {done.stderr}")
    return done.stdout.rstrip() + "\n" if done.stdout.strip() else ""


if __name__ == "__main__":
    sys.exit(main())
