"""A quantization that a killed host began, ended by another one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lmi_build import api
from lmi_build.events import ignore
from lmi_build.execute.executor import execute
from lmi_build.store.store import Store
from make_tiny_model import make_tiny_model
from shared_stores import bucket_server, ended, host, names, start
from stage_plans import settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from faulty_s3 import FaultyS3

NUM_LAYERS = 10
RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
quantize:
  method: gptq
  group_size: 32
  calibration: {num_samples: 16, max_seq_len: 128}
bounds: {max_input_len: 32, max_output_len: 8, max_batch_size: 2}
compile: {backend: onnxruntime}
"""


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    """A server that holds the bucket."""
    with bucket_server() as found:
        yield found


@pytest.mark.e2e
def test_blocks_of_a_killed_host_are_not_done_again(
    tmp_path: Path, server: FaultyS3
) -> None:
    """The result has the bytes of an undisturbed run, and few blocks are redone."""
    make_tiny_model(tmp_path / "model", num_layers=NUM_LAYERS, hidden_size=128, seed=1)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    alone = settings(tmp_path / "alone")
    plan = api.make_plan(api.load_recipe(tmp_path / "recipe.yaml"), alone)
    kinds = ("fetch", "calibration", "quantize")
    stages = tuple(stage for stage in plan.stages if stage.kind in kinds)
    plan = replace(plan, stages=stages, artifacts=())
    store = Store(alone.cache_dir)
    undisturbed = execute(plan, store=store, settings=alone, emit=ignore).rows[-1]

    doomed = start(tmp_path, server, "algo-1", plan)
    assert doomed.stdout is not None
    for line in doomed.stdout:
        event = json.loads(line)
        mirrored = any(name.endswith("index.json") for name in names(server))
        blocks = event.get("unit") == "blocks" and event["done"] >= NUM_LAYERS // 2
        if blocks and mirrored:
            break
    doomed.kill()
    doomed.communicate()
    status, lines = ended(start(tmp_path, server, "algo-2", plan))

    assert status == 0
    finished = [e for e in lines if e["event"] == "stage-finished"]
    assert [e["digest"] for e in finished] == [undisturbed.result.digest]
    steps = [e["done"] for e in lines if e.get("unit") == "blocks"]
    assert steps[0] >= 1
    assert steps[-1] == NUM_LAYERS
    assert not [name for name in names(server) if name.startswith("state/")]
    assert host(tmp_path / "algo-2", server).cache_dir.exists()
