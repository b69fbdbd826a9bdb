"""What a recipe cannot have as jobs: one error each, with its place and a way out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from job_works import (
    BASE,
    OWN_IMAGE,
    ROLE,
    WHEEL,
    overrides_for,
    work_of,
    work_of_recipes,
)
from lmi_build.catalog.instances import instances
from lmi_build.errors import RecipeInvalid, UsageInvalid
from lmi_build.jobs.images import in_region, region_problem
from lmi_build.jobs.render import render
from lmi_build.jobs.union import load_many
from planned_models import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.errors import Problem

ONNX = RECIPES / "smollm2-135m" / "none.onnxruntime.cpu.yaml"
GPU = RECIPES / "flan-t5-xl" / "none.tensorrt-llm.yaml"
NEURON = RECIPES / "all-minilm-l6" / "trace.neuronx.yaml"
LARGE = RECIPES / "llama-2-70b" / "awq.tensorrt-llm.yaml"


def recipe(tmp_path: Path, like: Path, job: str) -> Path:
    """A shipped recipe with a job section in its text, so that faults have places."""
    file = tmp_path / "recipe.yaml"
    head = f"  store: s3://my-models/lmi-build\n  role: {ROLE}\n"
    where = "" if "region:" in job else "  region: us-east-1\n"
    file.write_text(f"{like.read_text()}\njob:\n{head}{where}{job}")
    return file


def refused(file: Path, folder: str) -> tuple[Problem, ...]:
    """Every problem of a recipe as jobs, with a model of its folder."""
    with pytest.raises(RecipeInvalid) as caught:
        render(work_of(file, folder=folder), wheel=WHEEL)
    return caught.value.problems


CASES = [
    # An instance that SageMaker takes for no such job: inf2 for none at all.
    (
        ONNX,
        f"  image: {OWN_IMAGE}\n  kind: processing\n  instance: ml.inf2.8xlarge\n",
        "compile.instance-use",
        "instance: ml.inf2.8xlarge",
        "processing",
    ),
    (
        ONNX,
        f"  image: {OWN_IMAGE}\n  instance: ml.inf2.8xlarge\n",
        "compile.instance-use",
        "instance: ml.inf2.8xlarge",
        "training",
    ),
    (
        ONNX,
        f"  image: {OWN_IMAGE}\n  instance: ml.m5.3xlarge\n",
        "job.unknown-instance",
        "instance: ml.m5.3xlarge",
        "ml.m5.3xlarge",
    ),
    (
        ONNX,
        f"  image: {OWN_IMAGE}\n  volume_size_gb: 3\n",
        "job.volume-too-small",
        "volume_size_gb: 3",
        "the plan needs 12 GB",
    ),
    (
        ONNX,
        "",
        "job.image-lacks",
        "job:",
        "onnxruntime-genai",
    ),
    (
        ONNX,
        f"  region: eu-west-1\n  image: {OWN_IMAGE}\n",
        "job.image-region",
        f"image: {OWN_IMAGE}",
        "in the registry of `us-east-1` and the job runs in `eu-west-1`",
    ),
    (
        ONNX,
        f"  image: {OWN_IMAGE}\n  spot: true\n",
        "job.no-spot",
        "spot: true",
        "training jobs alone",
    ),
    (
        GPU,
        "  region: eu-isoe-west-1\n",
        "job.region-without-image",
        "region: eu-isoe-west-1",
        "djl-inference:0.30.0-tensorrtllm0.12.0-cu125",
    ),
    (
        GPU,
        "  instances: {compile: ml.g6.2xlarge}\n",
        "job.wrong-device",
        "compile: ml.g6.2xlarge",
        "compute capability 8.6",
    ),
    (
        GPU,
        "  instances: {compile: ml.m5.xlarge}\n",
        "job.wrong-device",
        "compile: ml.m5.xlarge",
        "no device",
    ),
    (
        NEURON,
        "  kind: processing\n",
        "job.needs-training",
        "kind: processing",
        "ml.trn1.2xlarge",
    ),
    (
        LARGE,
        "  instances: {checkpoint: ml.m5.xlarge}\n  volume_size_gb: 12\n",
        "job.volume-too-small",
        "volume_size_gb: 12",
        "needs",
    ),
]


@pytest.mark.parametrize(("like", "job", "code", "place", "says"), CASES)
def test_each_fault_has_its_place(
    like: Path, job: str, code: str, place: str, says: str, tmp_path: Path
) -> None:
    """One code, at the line that says it, with the numbers and a way out."""
    file = recipe(tmp_path, like, job)

    problems = refused(file, like.parent.name)

    assert {problem.code for problem in problems} == {code}
    for problem in problems:
        assert problem.span is not None
        assert problem.span.file == str(file)
        line = file.read_text().splitlines()[problem.span.line - 1]
        assert place in line
        assert line[problem.span.column - 1 :].strip()
        assert problem.hint
    assert any(says in problem.message for problem in problems)


@pytest.mark.parametrize(
    ("job", "code"),
    [
        ("  role: arn:aws:iam::1:role/x", "recipe.job-role"),
        ("  name_prefix: a_b", "recipe.job-name"),
        ("  secrets: {HF_TOKEN: mellon}", "recipe.job-secret"),
        ("  secrets: {TOKEN: ssm:/hub}", "recipe.job-no-secret"),
    ],
)
def test_what_the_text_alone_tells(job: str, code: str, tmp_path: Path) -> None:
    """Faults that need no plan."""
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{ONNX.read_text()}\njob:\n{job}\n")

    with pytest.raises(RecipeInvalid) as caught:
        load_many([file])

    assert [problem.code for problem in caught.value.problems] == [code]
    assert "mellon" not in str(caught.value.problems[0].span)


def test_a_host_too_small_is_refused_with_the_number(tmp_path: Path) -> None:
    """For stages that do not spill what does not fit."""
    job = f"  image: {OWN_IMAGE}\n  instances: {{verify: ml.c6i.xlarge}}\n"
    file = recipe(tmp_path, ONNX, job)

    (small,) = refused(file, "llama-2-70b")

    assert small.code == "job.host-too-small"
    assert "`ml.c6i.xlarge` has 8.0 GiB" in small.message
    assert re.search(r"choose a host with \d+\.0 GiB or more; `ml\.", small.hint)
    assert small.span is not None


def test_a_role_by_name_needs_somebody_who_knows_it(tmp_path: Path) -> None:
    """A request has the ARN; only IAM can complete a name."""
    work = work_of(ONNX, (*BASE, f"job.image={OWN_IMAGE}", "job.role=builder"))

    with pytest.raises(UsageInvalid) as caught:
        render(work, wheel=WHEEL)
    assert caught.value.code == "job.no-role"

    assert render(work, wheel=WHEEL, role_arn=ROLE).requests


def test_two_recipes_of_one_name(tmp_path: Path) -> None:
    """They would be one in the plan."""
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(ONNX.read_text())
    second.write_text(ONNX.read_text())

    with pytest.raises(RecipeInvalid) as caught:
        load_many([first, second])

    (problem,) = caught.value.problems
    assert problem.code == "job.same-name"
    assert problem.span is not None
    assert problem.span.file == str(second)


def test_recipes_that_want_different_roles(tmp_path: Path) -> None:
    """Jobs that share a graph have one."""
    from lmi_build.jobs.union import common_spec

    first = recipe(tmp_path, ONNX, "")
    text = first.read_text()
    other = tmp_path / "other.yaml"
    name = next(line for line in text.splitlines() if line.startswith("name:"))
    other.write_text(text.replace(name, "name: other").replace(ROLE, f"{ROLE}-2"))

    with pytest.raises(RecipeInvalid) as caught:
        common_spec(load_many([first, other]))

    (problem,) = caught.value.problems
    assert problem.code == "job.disagree"
    assert problem.path == "job.role"
    assert problem.span is not None
    assert problem.span.file == str(other)


def test_a_digest_alone_pins_the_catalogues_image() -> None:
    """The registry and the repository stay."""
    digest = f"sha256:{'ab' * 32}"
    work = work_of(GPU, (*BASE, f"job.images.compile={digest}"))

    images = {job.label: job.image for job in render(work, wheel=WHEEL).graph.jobs}

    account = "763104351884.dkr.ecr.us-east-1.amazonaws.com"
    assert images["gpu"] == f"{account}/djl-inference@{digest}"
    assert images["cpu"].startswith(f"{account}/huggingface-pytorch-inference:")


@pytest.mark.parametrize(
    ("uri", "region", "right"),
    [
        (OWN_IMAGE, "eu-west-1", OWN_IMAGE.replace("us-east-1", "eu-west-1")),
        (
            OWN_IMAGE,
            "cn-north-1",
            "111122223333.dkr.ecr.cn-north-1.amazonaws.com.cn/lmi-build:1",
        ),
        # The registry of AWS has another account where a region is opted into.
        (
            "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.6.0",
            "eu-south-1",
            "692866216735.dkr.ecr.eu-south-1.amazonaws.com/pytorch-training:2.6.0",
        ),
        ("docker.io/library/python:3.11", "eu-west-1", "docker.io/library/python:3.11"),
    ],
)
def test_the_right_image_of_a_region(uri: str, region: str, right: str) -> None:
    """It is in the hint, and is itself refused nowhere."""
    assert in_region(uri, region) == right
    assert region_problem(right, region, path="job.image") is None
    found = region_problem(uri, region, path="job.image")
    assert (found is None) is (uri == right)
    assert found is None or f"`{right}`" in found.hint


def test_spare_capacity_is_for_training_jobs() -> None:
    """A mixed graph has it where it can; the rest is said to be paid in full."""
    work = work_of(NEURON, (*BASE, "job.spot=true"))

    jobs = render(work, wheel=WHEEL).graph.jobs

    assert {job.kind for job in jobs} == {"processing", "training"}
    for job in jobs:
        full = any(reason.startswith("paid in full") for reason in job.reasons)
        assert full is (job.kind == "processing")


OTHER_IMAGE = f"{OWN_IMAGE}-other"


def test_one_job_has_one_image(tmp_path: Path) -> None:
    """Recipes that name two are refused with both, a recipe that names two as well."""
    first = recipe(tmp_path, ONNX, f"  image: {OWN_IMAGE}\n")
    other = tmp_path / "other.yaml"
    text = first.read_text().replace(OWN_IMAGE, OTHER_IMAGE)
    name = next(line for line in text.splitlines() if line.startswith("name:"))
    other.write_text(text.replace(name, "name: other"))
    both = work_of_recipes(load_many([first, other]), "smollm2-135m")
    stages = f"job.images.compile={OTHER_IMAGE}"
    alone = work_of(ONNX, (*BASE, f"job.image={OWN_IMAGE}", stages))

    assert {job.image for job in render(both, wheel=WHEEL).graph.jobs} == {
        OWN_IMAGE,
        OTHER_IMAGE,
    }
    for work in (both, alone):
        with pytest.raises(RecipeInvalid) as caught:
            render(work, single=True, wheel=WHEEL)
        (problem,) = caught.value.problems
        assert problem.code == "job.not-single"
        assert problem.path == "job.image"
        assert f"`{OWN_IMAGE}`" in problem.message
        assert f"`{OTHER_IMAGE}`" in problem.message


def test_the_one_image_that_is_named_holds_for_all() -> None:
    """Stages that any image would do for run in it."""
    stages = f"{{compile: {OWN_IMAGE}, verify: {OWN_IMAGE}}}"
    work = work_of(ONNX, (*BASE, f"job.images={stages}"))

    graph = render(work, wheel=WHEEL).graph
    (job,) = render(work, single=True, wheel=WHEEL).graph.jobs

    assert len({job.image for job in graph.jobs}) == 2
    assert job.image == OWN_IMAGE


def test_opted_in_regions_have_their_own_registry() -> None:
    """Account and suffix by region."""
    base = [value for value in BASE if "region" not in value]
    for region, start in {
        "eu-south-1": "692866216735.dkr.ecr.eu-south-1.amazonaws.com/",
        "cn-north-1": "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/",
    }.items():
        work = work_of(GPU, (*base, f"job.region={region}"))
        for job in render(work, wheel=WHEEL).graph.jobs:
            assert job.image.startswith(start)


def test_what_will_go_wrong_is_said_before() -> None:
    """Other versions in the image, too little time, and no way to publish."""
    work = work_of(
        GPU,
        (
            *BASE,
            "job.max_runtime_seconds=60",
            "job.network_isolation=true",
            "publish.to=s3://artifacts/models",
        ),
    )

    jobs = {job.label: job for job in render(work, wheel=WHEEL).graph.jobs}

    said = "\n".join(jobs["cpu"].warnings)
    assert "the image has torch 2.6.0, the plan was made with 1.0" in said
    assert "lock RECIPE --tools-from JOB" in said
    assert "publishes nothing" in said
    assert any("may take" in text for text in jobs["gpu"].warnings)


def test_a_job_without_network_publishes_nothing() -> None:
    """It is told so, and its request gives it nothing to do it with."""
    base = (*BASE, "publish.to=s3://artifacts/models")
    for extra, wishes in (((), 1), (("job.network_isolation=true",), 0)):
        graph = render(work_of(GPU, (*base, *extra)), wheel=WHEEL).graph
        assert sum(len(graph.publishes(job)) for job in graph.jobs) == wishes


def test_a_release_without_an_image_needs_one_of_your_own() -> None:
    """Jobs pull from ECR alone."""
    work = work_of(NEURON, (*BASE, "compile.release=djl-neuronx-0.34.0"))

    with pytest.raises(RecipeInvalid) as caught:
        render(work, wheel=WHEEL)

    (problem,) = caught.value.problems
    assert problem.code == "job.no-image"
    assert "job: {images: {compile: URI}}" in problem.hint


def test_what_is_absent_here_is_needed_in_the_image() -> None:
    """A machine without the tools plans, and is told the same as one with them."""
    work = work_of(ONNX, BASE)
    bare = [
        replace(stage, tools=dict.fromkeys(stage.tools, "absent"))
        for stage in work.plan.stages
        if stage.kind in {"fetch", "compile"}
    ]
    artifact = replace(
        work.plan.artifacts[0], stages={stage.kind: stage.key for stage in bare}
    )
    plan = replace(work.plan, stages=tuple(bare), artifacts=(artifact,))

    with pytest.raises(RecipeInvalid) as caught:
        render(replace(work, plan=plan), wheel=WHEEL)

    (problem,) = caught.value.problems
    assert problem.code == "job.image-lacks"
    assert "`onnxruntime-genai`" in problem.message


def test_threads_that_a_key_fixes_are_said() -> None:
    """A host with other cores than the planning machine does not go unnoticed."""
    path = RECIPES / "smollm2-135m" / "gptq.onnxruntime.cpu.yaml"

    (job,) = render(work_of(path, overrides_for(path)), wheel=WHEEL).graph.jobs
    vcpus = instances()[job.instance].num_vcpus

    (said,) = [text for text in job.warnings if "threads" in text]
    assert f"LMI_BUILD_THREADS={vcpus}" in said
