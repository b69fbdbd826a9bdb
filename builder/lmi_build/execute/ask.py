"""Asking a small program of this machine for its text."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from lmi_build.spi import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

# `nvidia-smi` takes seconds where the driver sleeps; nothing asked here takes longer.
_TIMEOUT_SECONDS = 30.0
# What a shell says of a program that is not there.
_NOT_STARTED = 127


def ask(argv: Sequence[str]) -> Answer:
    """
    Run a program to its end and take what it says.

    Args:
        argv: Program and arguments; no shell reads them.
    """
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(status=_NOT_STARTED, output=f"{argv[0]}: {error}")
    return Answer(status=done.returncode, output=done.stdout.decode(errors="replace"))
