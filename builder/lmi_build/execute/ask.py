"""Asking a small program of this machine for its text."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# `nvidia-smi` takes seconds where the driver sleeps; nothing asked here takes longer.
_TIMEOUT_SECONDS = 20.0


def ask(argv: Sequence[str]) -> str | None:
    """
    What a program prints to its standard output.

    Args:
        argv: Program and arguments; no shell reads them.

    Returns:
        Its text, or None where it is not installed, fails or does not end.
    """
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
