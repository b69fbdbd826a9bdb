"""Quality gates and report pages on a tiny model, as a user meets them: by commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from desk import Desk, Done
from make_tiny_model import make_tiny_model
from report_pages import Page

RECIPE = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
quantize:
  method: gptq
  group_size: 64
  calibration: {num_samples: 8, max_seq_len: 32}
bounds: {max_input_len: 32, max_output_len: 8, max_batch_size: 2}
compile: {backend: onnxruntime}
verify: {max_new_tokens: 4, num_samples: 3, max_seq_len: 32, gates: {max_mean_kl: GATE}}
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk with a model."""
    root = tmp_path_factory.mktemp("desk")
    make_tiny_model(root / "model")
    return Desk(root)


def build(desk: Desk, gate: float) -> Done:
    """Build with a gate."""
    (desk.root / "recipe.yaml").write_text(RECIPE.replace("GATE", f"{gate:.12f}"))
    return desk.run("build", "recipe.yaml", "--output", "json")


@pytest.fixture(scope="module")
def missed(desk: Desk) -> Done:
    """A build that no artifact of four bits can pass."""
    return build(desk, 1e-9)


@pytest.fixture(scope="module")
def passed(desk: Desk, missed: Done) -> Done:
    """The same with a gate that any artifact passes, after the build that failed."""
    assert missed.status == 5
    return build(desk, 50.0)


def test_a_missed_gate_says_where_and_what_to_try(missed: Done) -> None:
    """Status 5, the value with its interval, layers by name, steps of this recipe."""
    error = missed.json["error"]

    assert missed.status == 5
    assert error["code"] == "verify.gate-missed"
    assert "max_mean_kl: " in error["message"]
    assert "allowed at most 1e-09" in error["message"]
    assert "95% intervals" in error["message"]
    assert "largest relative errors of 14 layers" in error["message"]
    assert "model.layers." in error["message"]
    assert any("`quantize.group_size: 32` (now 64)" in hint for hint in error["hints"])
    assert any("`quantize.calibration.num_samples: " in hint for hint in error["hints"])


def test_a_missed_gate_leaves_a_report(missed: Done) -> None:
    """The artifact is nowhere, its page is: in the record of the run."""
    (line,) = [x for x in missed.err.splitlines() if x.startswith("report: ")]
    page = Page(Path(line.removeprefix("report: ")).read_text("utf-8"))

    assert "1 of 1 quality gates missed" in " ".join(page.text)


def test_a_loosened_gate_measures_again_and_no_more(passed: Done) -> None:
    """Everything but verify is found in the store."""
    cached = {row["kind"]: row["cached"] for row in passed.json["stages"]}

    assert passed.status == 0, passed.err
    assert cached == {
        "fetch": True,
        "quantize": True,
        "compile": True,
        "package": True,
        "verify": False,
    }


def test_verification_holds_every_interval(desk: Desk, passed: Done) -> None:
    """`verify.json` has values, intervals, their level and the gates as judged."""
    assert passed.status == 0
    path = desk.root / "artifacts" / "tiny.verify.json"
    document = json.loads(path.read_bytes())
    drift = document["drift"]

    for key in ("mean_kl", "top1_agreement", "perplexity_ratio"):
        span = drift[f"{key}_interval"]
        assert span["low"] <= drift[key] <= span["high"]
    assert drift["interval_level"] == 0.95
    assert [row["gate"] for row in document["gates"]] == ["max_mean_kl"]
    assert document["gates"][0]["met"] is True


def test_layers_are_in_the_artifact_and_its_manifest(desk: Desk, passed: Done) -> None:
    """Each quantized linear has a row; the manifest has the worst; `inspect` shows."""
    assert passed.status == 0
    table = json.loads((desk.tree / "layers.json").read_bytes())
    manifest = json.loads((desk.tree / "manifest.json").read_bytes())
    worst = manifest["ledger"]["layers"]["worst"]
    told = desk.run("inspect", str(desk.tree))

    error = table["columns"].index("error")
    rows = sorted(table["layers"], key=lambda row: -row[error])
    assert len(rows) == manifest["ledger"]["layers"]["num_quantized"] == 14
    assert [row["name"] for row in worst] == [row[0] for row in rows[: len(worst)]]
    assert "14 layers quantized" in told.out
    assert worst[0]["name"] in told.out
    assert "bits a weight" in told.out


def test_report_is_written_beside_the_artifact(desk: Desk, passed: Done) -> None:
    """The command writes the same bytes twice, with times from the store."""
    assert passed.status == 0
    first = desk.run("report", "artifacts/tiny", "--output", "json")
    path = desk.root / "artifacts" / "tiny.report.html"
    data = path.read_bytes()
    again = desk.run("report", "artifacts/tiny", "--out", "again.html")
    page = Page(data.decode())
    said = " ".join(page.text)

    assert first.json["path"] == str(path)
    assert first.json["bytes"] == len(data)
    assert (desk.root / "again.html").read_bytes() == data, again.err
    for wanted in ("Error per layer", "Bits per weight", "Time and memory", "quantize"):
        assert wanted in said
    assert str(desk.root) not in data.decode()
    assert desk.run("verify", "artifacts/tiny").status == 0


def test_report_of_a_build_stands_in_its_record(passed: Done) -> None:
    """The path is in the data of the build."""
    (row,) = passed.json["reports"]

    assert row["name"] == "tiny"
    Page(Path(row["path"]).read_text("utf-8"))


def test_report_of_nothing_is_refused(desk: Desk) -> None:
    """A folder without a manifest is named; nothing is written."""
    done = desk.run("report", "model")

    assert done.status == 6
    assert "remote.not-found" in done.err
    assert not (desk.root / "model.report.html").exists()
