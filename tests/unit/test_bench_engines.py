"""The table of SmolLM2's engines: each recipe is there, and numbers are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import engines
from lmi_build.api import load_recipe
from lmi_build.digest import Digest
from lmi_build.values.result import BuildResult, Measure, StageResult, StageRow

EVERY = [
    (method, backend) for backend in engines.BACKENDS for method in engines.METHODS
]
ROW = engines.Row(
    method="gptq",
    backend="onnxruntime",
    engine_bytes=3 * 2**20,
    seconds=61.4,
    cpu_seconds=80.6,
    drift={"mean_kl": 0.10123, "top1_agreement": 0.84, "perplexity_ratio": 1.0883},
    tokens_per_second=170.04,
    load_seconds=0.314,
)


@pytest.mark.parametrize(("method", "backend"), EVERY)
def test_there_is_a_recipe_for_each(method: str, backend: str) -> None:
    """Five methods on two backends, with gates; all of one model and bounds."""
    (recipe,) = load_recipe(engines.RECIPES / f"{method}.{backend}.cpu.yaml")
    (first,) = load_recipe(engines.RECIPES / "none.onnxruntime.cpu.yaml")

    assert (recipe.quantize.method, recipe.compile.backend) == (method, backend)
    assert recipe.compile.target == "cpu"
    assert (recipe.model, recipe.bounds) == (first.model, first.bounds)
    gates = recipe.verify.gates
    assert gates.max_mean_kl is not None
    assert gates.min_top1_agreement is not None


def test_parts_choose_recipes() -> None:
    """Any part of a name; none takes all."""
    assert engines.chosen([]) == EVERY
    assert engines.chosen(["awq"]) == [("awq", name) for name in engines.BACKENDS]
    assert engines.chosen(["gptq.onnx", "int8.aot"]) == [
        ("gptq", "onnxruntime"),
        ("int8", "aotinductor"),
    ]


def test_a_row_says_what_was_measured() -> None:
    """Bytes in MiB; a row whose gate was missed has no numbers of `verify`."""
    told = "| gptq | onnxruntime | 3 | 61 | 81 | 0.1012 | 0.84 | 1.088 | 0.31 | 170.0 |"

    assert engines.line(ROW) == told
    assert "| - | - | - |" in engines.line(replace(ROW, drift=None))
    head, rule, row = engines.table([ROW]).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")


def test_a_server_that_ends_is_told(tmp_path: Path) -> None:
    """Of a folder that is no artifact there is no answer, and nobody waits for one."""
    with pytest.raises(RuntimeError, match="ended with status"):
        engines.served_answer(tmp_path, "What is the capital of France?", 8)


def test_what_methods_share_is_no_ones_cost() -> None:
    """Fetching and calibration texts are counted for none of them."""

    def stage(kind: str, seconds: float) -> StageRow:
        measure = Measure(seconds=seconds, cpu_seconds=2 * seconds, peak_rss_bytes=0)
        result = StageResult(
            key=Digest("k"), digest=Digest("d"), entries=(), measure=measure
        )
        return StageRow(name=f"a/{kind}", kind=kind, result=result, cached=True)

    rows = tuple(
        map(stage, ("fetch", "calibration", "quantize", "verify"), (8, 4, 2, 1))
    )
    done = BuildResult(rows=rows, artifacts={}, seconds=0.1, record_dir=Path())

    assert engines.cost(done) == (3, 6)
