"""A user's own instances: every command that looks or builds knows them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.catalog.instances import instances, shipped_instances, using
from lmi_build.catalog.prices import price_tables, shipped_price_tables
from lmi_build.cli.main import run
from lmi_build.recipe.load import load_recipe
from make_shapes import make_shapes
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

OURS = """\
[instances.g9]
accelerator = "gpu"
device = "L40S"
device_memory_mib = 45000
cores_per_device = 1
compute_capability = "8.9"
own_disk = true
source = "our account team"
uses = ["training", "endpoint"]
sizes = { 2xlarge = [1, 8, 32] }

[prices.ours]
region = "us-east-1"
jobs = ["endpoint", "training"]
source = "contract"
checked = "2026-10-01"
usd_per_hour = { "g9.2xlarge" = 1.1 }

[prices.hosts]
region = "us-east-1"
jobs = ["processing"]
source = "contract"
checked = "2026-10-01"
usd_per_hour = { "m5.4xlarge" = 0.01 }
"""
RECIPE = """\
schema: lmi-build/v1
name: ours
model: {source: ./model}
quantize: {method: none}
bounds: {max_input_len: 64, max_output_len: 32, max_batch_size: 4}
compile:
  backend: tensorrt-llm
  target: ml.g9.2xlarge
  release: djl-tensorrtllm-0.33.0
"""
JOB = """\
job:
  store: s3://my-models/lmi-build
  role: arn:aws:iam::111122223333:role/lmi-build
  region: us-east-1
  image: 111122223333.dkr.ecr.us-east-1.amazonaws.com/lmi-build:1
"""
CHECKPOINT = ["--set", "compile.artifact=hf-quantized"]
LOOKING = (["validate"], ["plan"], ["why"], ["job", "render", *CHECKPOINT])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for an instance that the package does not have."""
    root = tmp_path_factory.mktemp("desk")
    make_tiny_model(root / "model")
    make_shapes("Llama-3.1-8B-Instruct", root)
    (root / "ours.toml").write_text(OURS)
    (root / "recipe.yaml").write_text(RECIPE + JOB)
    return root


def ask(desk: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """A command's JSON."""
    capsys.readouterr()
    common = ["--catalog", "ours.toml", "--cache-dir", str(desk / "store")]
    assert run([*words, *common, "--output", "json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("words", LOOKING, ids=lambda words: words[0])
def test_commands_know_it_by_option_and_by_variable(
    desk: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And refuse it without."""
    monkeypatch.chdir(desk)
    argv = [*words, "recipe.yaml", "--cache-dir", "store", "--quiet"]

    assert run(argv) == 2
    assert run([*argv, "--catalog", "ours.toml"]) == 0
    monkeypatch.setenv("LMI_BUILD_CATALOG", "ours.toml")
    assert run(argv) == 0
    assert instances() is shipped_instances()


def test_jobs_take_its_machines_and_its_prices(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host that a contract makes the cheapest; keys are those of the plan."""
    monkeypatch.chdir(desk)
    rendered = ask(desk, capsys, "job", "render", "recipe.yaml", *CHECKPOINT)
    plan = ask(desk, capsys, "plan", "recipe.yaml", *CHECKPOINT)

    (job,) = rendered["jobs"]
    assert job["instance"] == "ml.m5.4xlarge"
    keys = [*rendered["local"], *job["stages"]]
    assert {row["key"] for row in keys} == {row["key"] for row in plan["stages"]}
    assert price_tables() is shipped_price_tables()


def test_a_rehearsal_is_built_for_it(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    report = ask(desk, capsys, "build", "recipe.yaml", "--rehearse")

    assert {"checkpoint", "compile", "package"} <= {
        stage["kind"] for stage in report["stages"]
    }


def test_a_recipe_is_written_for_it(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    out = tmp_path / "advised.yaml"
    words = ["advise", "--model", "./model", "--instance", "ml.g9.2xlarge", "--built"]
    common = ["--traffic", "even", "--cache-dir", "store", "--quiet"]

    assert run([*words, *common, "--write", str(out)]) == 2
    assert run([*words, *common, "--write", str(out), "--catalog", "ours.toml"]) == 0
    assert load_recipe(out)[0].compile.target == "ml.g9.2xlarge"


def test_it_is_suggested_where_a_model_does_not_fit(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next machine is the user's own; `cost` finds it cheaper."""
    monkeypatch.chdir(desk)
    model = ["--model", "./Llama-3.1-8B-Instruct", "--max-batch-size", "24"]
    bounds = ["--max-input-len", "4096", "--max-output-len", "512"]
    (report,) = ask(desk, capsys, "size", *model, *bounds)
    found = [change["value"] for change in report["changes"]]
    priced = RECIPE.replace("./model", "./Llama-3.1-8B-Instruct")
    (desk / "priced.yaml").write_text(priced.replace("g9.2xlarge", "g5.4xlarge"))
    (cost,) = ask(desk, capsys, "cost", "priced.yaml")
    cheaper = [item["setup"]["instance"] for item in cost["alternatives"]]

    assert any("ml.g9.2xlarge" in value for value in found)
    assert "ml.g9.2xlarge" in cheaper


def test_rows_are_known_only_inside() -> None:
    """Also where what runs inside fails."""
    row = next(iter(shipped_instances().values()))

    def fail() -> None:
        with using({"ml.x.large": row}):
            raise KeyError(*instances())

    with pytest.raises(KeyError, match=r"ml\.x\.large"):
        fail()
    assert instances() is shipped_instances()
