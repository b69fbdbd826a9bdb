"""
Every shipped recipe makes the requests that it made before, cut and in one job.

What hangs on keys (names of jobs and of channels) is replaced by what it is.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.validate import ParamValidator

from job_works import WHEEL, overrides_for, work_of, work_of_recipes
from lmi_build.errors import RecipeInvalid
from lmi_build.jobs.api_check import check_request, service_model
from lmi_build.jobs.pipeline import create_pipeline, pipeline_definition
from lmi_build.jobs.render import Rendered, render
from lmi_build.recipe.load import load_recipe
from planned_models import ALL

if TYPE_CHECKING:
    from lmi_build.jobs.union import Work

GOLDEN = Path(__file__).parent / "jobs"
IDS = [f"{path.parent.name}.{path.stem}" for path in ALL]
# In one job there is one machine, and the variants of these are for several.
MANY_MACHINES = {
    "llama-3.1-8b.awq.tensorrt-llm",
    "llama-3.1-8b.gptq.tensorrt-llm",
    "llama-3.1-8b.int8.tensorrt-llm",
    "llama-3.1-8b.smoothquant.tensorrt-llm",
}


def first_variant(path: Path) -> Work:
    """The plan of a matrix's first variant alone."""
    recipes = load_recipe(path, overrides=overrides_for(path))[:1]
    return work_of_recipes(recipes, path.parent.name)


def rendered(path: Path, *, single: bool) -> Rendered:
    """A recipe's jobs and requests."""
    work = work_of(path, overrides_for(path))
    return render(work, single=single, wheel=WHEEL)


def text_of(found: Rendered) -> str:
    """The graph and the requests, without digests."""
    document = {
        "jobs": [
            {
                "label": job.label,
                "stages": [found.graph.plan.stage(key).name for key in job.stages],
                "after": [found.graph.job(name).label for name in job.after],
                "reasons": job.reasons,
            }
            for job in found.graph.jobs
        ],
        "local": [found.graph.plan.stage(key).name for key in found.graph.local],
        "requests": [dict(request.document) for request in found.requests],
    }
    text = json.dumps(document, indent=1) + "\n"
    text = re.sub(r"inputs/[0-9a-f]{64}/", "inputs/<channel>/", text)
    return re.sub(r"-[0-9a-f]{12}(?=[\"/])", "-<work>", text)


def check(name: str, text: str, *, update: bool) -> None:
    """Compare with what was, or write it down."""
    file = GOLDEN / f"{name}.json"
    if update:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert file.read_text() == text


@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_cut_requests_are_what_they_were(path: Path, update_golden: bool) -> None:  # noqa: FBT001
    """The jobs of a recipe, by the machines it needs."""
    name = f"{path.parent.name}.{path.stem}.cut"
    check(name, text_of(rendered(path, single=False)), update=update_golden)


@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_single_requests_are_what_they_were(path: Path, update_golden: bool) -> None:  # noqa: FBT001
    """One job; where variants are for several machines, the first one's."""
    name = f"{path.parent.name}.{path.stem}"
    work = first_variant(path) if name in MANY_MACHINES else None
    found = (
        render(work, single=True, wheel=WHEEL) if work else rendered(path, single=True)
    )

    assert len(found.graph.jobs) == 1
    check(f"{name}.single", text_of(found), update=update_golden)


@pytest.mark.parametrize("name", sorted(MANY_MACHINES))
def test_one_job_is_not_two_machines(name: str) -> None:
    """Variants for several machines are refused, each by its place."""
    path = ALL[IDS.index(name)]

    with pytest.raises(RecipeInvalid) as caught:
        rendered(path, single=True)

    assert {problem.code for problem in caught.value.problems} == {"job.not-single"}
    assert all(problem.span for problem in caught.value.problems)


@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_both_validators_take_every_request(path: Path) -> None:
    """Ours, and botocore's own."""
    for request in rendered(path, single=False).requests:
        shape = service_model().operation_model(request.operation).input_shape
        report = ParamValidator().validate(dict(request.document), shape)

        assert not report.has_errors(), report.generate_report()
        assert check_request(request.operation, request.document) == ()


@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_a_pipeline_has_the_same_steps(path: Path) -> None:
    """Each job is a step; edges are the same; requests lose only their names."""
    found = rendered(path, single=False)
    definition: dict[str, Any] = pipeline_definition(found)

    assert definition["Version"] == "2020-12-01"
    steps = {step["Name"]: step for step in definition["Steps"]}
    assert len(steps) == len(found.graph.jobs)
    for job, request in zip(found.graph.jobs, found.requests, strict=True):
        step = steps[job.label]
        labels = [found.graph.job(name).label for name in job.after]
        assert step.get("DependsOn", []) == labels
        kind = request.operation.removeprefix("Create").removesuffix("Job")
        assert step["Type"] == kind
        named = {**step["Arguments"], f"{kind}JobName": job.name}
        assert named == dict(request.document)
    body = create_pipeline(found, "a-pipeline", request.document["RoleArn"])
    assert check_request("CreatePipeline", body) == ()
