"""`lmi-build job render` as people and programs see it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import tiny_models
from job_works import OWN_IMAGE, ROLE
from lmi_build.cli.main import run
from lmi_build.jobs.api_check import check_request
from lmi_build.plan.saved import plan_from_json
from lmi_build.values.job import job_from_json

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
schema: lmi-build/v1
name: {name}
model: {{source: ./model}}
quantize: {{method: int8}}
bounds: {{max_input_len: {length}, max_output_len: 8}}
compile: {{backend: onnxruntime}}
job:
  store: s3://my-models/lmi-build
  role: {role}
  region: us-east-1
  image: {image}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two recipes beside a tiny model, and an environment without AWS."""
    for name, data in tiny_models.hf_files().items():
        path = tmp_path / "model" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    for name, length in {"one": 16, "two": 24}.items():
        text = RECIPE.format(name=name, length=length, role=ROLE, image=OWN_IMAGE)
        (tmp_path / f"{name}.yaml").write_text(text)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "LMI_BUILD_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LMI_BUILD_CACHE", str(tmp_path / "cache"))
    return tmp_path


def render(folder: Path, *words: str) -> tuple[int, list[str]]:
    """Status of `job render` of recipes in the folder."""
    files = [str(folder / word) if word.endswith(".yaml") else word for word in words]
    return run(["job", "render", *files]), files


def documents(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was printed as data."""
    return json.loads(capsys.readouterr().out)


def test_two_recipes_share_what_they_share(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One source and one quantization, two engines."""
    status, _ = render(folder, "one.yaml", "two.yaml", "--output", "json")

    found = documents(capsys)
    assert status == 0
    kinds = [
        row["name"].split("/")[1]
        for row in [*found["local"], *(r for j in found["jobs"] for r in j["stages"])]
    ]
    assert sorted(kinds) == sorted(
        ["fetch", "quantize", *("compile", "package", "verify") * 2]
    )
    for request in found["requests"]:
        assert check_request(request["operation"], request["document"]) == ()


def test_files_are_what_a_job_needs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requests for the AWS command line, channels, policies and a pipeline."""
    out = folder / "out"
    status, _ = render(
        folder, "one.yaml", "--policy", "--pipeline", "--out", str(out), "--quiet"
    )

    assert status == 0
    capsys.readouterr()
    graph = json.loads((out / "graph.json").read_text())
    (job,) = graph["jobs"]
    place = out / job["name"]
    request = json.loads((place / "create-processing-job.json").read_text())
    assert check_request("CreateProcessingJob", request) == ()
    told = job_from_json((place / "channel" / "job.json").read_bytes())
    plan = plan_from_json((place / "channel" / "plan.json").read_bytes(), "plan.json")
    assert set(told.stages) <= {stage.key for stage in plan.stages}
    assert (place / "channel" / told.wheel).is_file()
    assert (place / "channel" / "sagemaker_entry.sh").is_file()
    pipeline = json.loads((out / "pipeline.json").read_text())
    assert [step["Name"] for step in pipeline["Steps"]] == [job["label"]]
    for name in ("role", "trust", "submitter"):
        policy = json.loads((out / f"policy-{name}.json").read_text())
        assert policy["Version"] == "2012-10-17"


def test_the_same_again_is_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of jobs and places of channels, byte for byte."""
    found = []
    for _ in range(2):
        render(folder, "one.yaml", "two.yaml", "--output", "json")
        found.append(documents(capsys))

    assert found[0] == found[1]


def test_a_fault_is_shown_at_its_place(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File, line and column, and status 2."""
    file = folder / "one.yaml"
    file.write_text(
        f"{file.read_text()}  kind: processing\n  instance: ml.inf2.8xlarge\n"
    )

    status, _ = render(folder, "one.yaml", "--no-color")

    assert status == 3  # a sound wish that SageMaker does not grant
    shown = capsys.readouterr().err
    assert "error[compile.instance-use]" in shown
    assert f"{file}:13:13  job.instance" in shown
    assert shown.count("error[") == 1


@pytest.mark.parametrize(
    ("job", "code", "place"),
    [
        (
            "  kind: processing\n  instance: ml.inf2.8xlarge\n",
            "compile.instance-use",
            "13:13",
        ),
        ("  instances: {verify: ml.m5.huge}\n", "job.unknown-instance", "12:23"),
    ],
)
def test_validate_knows_instances(
    job: str, code: str, place: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is planned; what is sound is valid."""
    file = folder / "one.yaml"
    assert run(["validate", str(file)]) == 0
    file.write_text(file.read_text() + job)

    assert run(["validate", str(file), "--no-color"]) != 0

    shown = capsys.readouterr().err
    assert f"error[{code}]" in shown
    assert f"{file}:{place}" in shown


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("store:", "job.no-store"),
        ("region:", "job.no-region"),
        ("role:", "job.no-role"),
    ],
)
def test_what_nobody_says_is_asked_for(
    line: str, code: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Store, region and role, each with the way to say it."""
    file = folder / "one.yaml"
    kept = [row for row in file.read_text().splitlines() if line not in row]
    file.write_text("\n".join(kept))

    status, _ = render(folder, "one.yaml", "--no-color")

    assert status == 2
    assert f"error[{code}]" in capsys.readouterr().err


def test_all_that_nobody_says_is_asked_for_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, with a way to say each."""
    file = folder / "one.yaml"
    kept = [
        row
        for row in file.read_text().splitlines()
        if not any(name in row for name in ("store:", "region:", "role:"))
    ]
    file.write_text("\n".join(kept))

    status, _ = render(folder, "one.yaml", "--no-color")

    assert status == 2
    shown = capsys.readouterr().err
    assert shown.count("error[") == 1
    assert all(word in shown for word in ("share", "AWS region", "which role"))
    assert shown.count("hint: ") == 3


def test_the_store_of_the_command_line_goes_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over the recipe's."""
    render(folder, "one.yaml", "--store", "s3://other/place", "--output", "json")

    found = documents(capsys)
    assert found["store"] == "s3://other/place"
    assert found["requests"][0]["channel"].startswith("s3://other/place/inputs/")


def test_an_optimization_job_says_why_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words, beside the jobs."""
    status, _ = render(folder, "one.yaml", "--optimization-job")

    assert status == 0
    assert "why not" in capsys.readouterr().out


def test_a_model_is_looked_up_once_for_recipes_of_many_folders(folder: Path) -> None:
    """What lies elsewhere is the same from every folder; what is relative is not."""
    from dataclasses import replace

    from lmi_build import api
    from lmi_build.values.settings import Settings

    settings = Settings(cache_dir=folder / "cache")
    (recipe,) = api.load_recipe(folder / "one.yaml")
    absolute = replace(recipe.model, source=str(folder / "model"))
    recipes = []
    for name in ("a", "b"):
        (folder / name).mkdir()
        file = str(folder / name / "r.yaml")
        recipes.append(replace(recipe, name=name, file=file, model=absolute))
    (folder / "b" / "model").symlink_to(folder / "model")
    relative = replace(recipes[1], name="c", model=recipe.model)

    found = api.resolve([*recipes, relative], settings)

    assert found["a"] is found["b"]
    assert found["c"] is not found["a"]
