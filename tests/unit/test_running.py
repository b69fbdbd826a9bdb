"""Long commands: their lines, their status, and what they leave behind."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from lmi_build.backends import running

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_are_heard_as_they_come(tmp_path: Path) -> None:
    """Every line without its end, and the last of them in the tail."""
    heard: list[str] = []

    ran = running.run_logged(
        ["sh", "-c", "echo one; echo two >&2; exit 3"],
        cwd=tmp_path,
        environment={"PATH": os.environ["PATH"]},
        hear=heard.append,
    )

    assert heard == ["one", "two"]
    assert (ran.status, ran.tail) == (3, ("one", "two"))
    assert ran.peak_rss_bytes > 0


def test_a_fault_of_the_listener_is_raised(tmp_path: Path) -> None:
    """What the listener raises is not lost with its thread."""

    def hear(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="one"):
        running.run_logged(
            ["sh", "-c", "echo one"],
            cwd=tmp_path,
            environment={"PATH": os.environ["PATH"]},
            hear=hear,
        )


def test_a_killed_command_is_not_waited_for_by_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that keeps the output open does not keep us."""
    monkeypatch.setattr(running, "_LINGER_SECONDS", 0.2)
    heard: list[str] = []

    ran = running.run_logged(
        ["sh", "-c", "sleep 60 & echo $!; sleep 0.1; kill -9 $$"],
        cwd=tmp_path,
        environment={"PATH": os.environ["PATH"]},
        hear=heard.append,
    )

    child = int(heard[0])
    # It lives still: the command was not waited out.
    os.kill(child, signal.SIGKILL)
    assert ran.status == -signal.SIGKILL
