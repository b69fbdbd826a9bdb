"""The README's way from a laptop to SageMaker, as far as it goes without AWS."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from desk import Desk
from make_tiny_model import make_tiny_model

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
_, _, WAY = README.partition("## From laptop to SageMaker\n")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", WAY.partition("\n## ")[0], re.DOTALL)
RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
quantize: {method: rtn, bits: 4, group_size: 32}
bounds: {max_input_len: 64, max_output_len: 8}
compile: {backend: onnxruntime}
verify: {num_samples: 2, max_seq_len: 16, max_new_tokens: 4}
"""


@pytest.mark.slow
@pytest.mark.e2e
def test_the_readmes_way_to_sagemaker(tmp_path: Path) -> None:
    """Each command ends as the README says, and writes what it says."""
    section = next(text for kind, text in BLOCKS if kind == "yaml")
    commands = next(text for kind, text in BLOCKS if kind == "console").splitlines()
    make_tiny_model(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(RECIPE + section)
    desk = Desk(tmp_path)

    ends = {line: desk.run(*shlex.split(line)[1:]) for line in commands}

    assert len(ends) == len(commands) == 4
    lock, simulated, broken, rendered = ends.values()
    assert lock.status == 0, lock.err
    assert simulated.status == 0, simulated.err
    assert re.match(r"tiny sha256:[0-9a-f]{64}", simulated.out)
    assert broken.status == 1
    assert "error[job.killed]: tiny/compile" in broken.err
    assert rendered.status == 0, rendered.err
    jobs = {path.name for path in (tmp_path / "jobs").iterdir()}
    assert {"policy-role.json", "policy-submitter.json", "pipeline.json"} <= jobs
    assert len(list(tmp_path.glob("jobs/*/create-processing-job.json"))) == 1
