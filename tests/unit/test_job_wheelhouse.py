"""A folder of wheels that jobs bring along: what is taken, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from job_works import BASE, OWN_IMAGE, WHEEL, work_of
from lmi_build.digest import digest_bytes
from lmi_build.errors import RecipeInvalid
from lmi_build.jobs.api_check import check_request
from lmi_build.jobs.locked_images import uris_of
from lmi_build.jobs.render import render
from lmi_build.jobs.union import load_many
from lmi_build.jobs.wheelhouse import (
    LOCKED_AS,
    Wheelhouse,
    find_wheelhouse,
    normal,
)
from lmi_build.values.job import WHEELS_FILE
from lmi_build.values.lock import Lock
from planned_models import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

    from lmi_build.jobs.render import Rendered
    from lmi_build.jobs.union import Work

ONNX = RECIPES / "smollm2-135m" / "none.onnxruntime.cpu.yaml"
STOCK = "huggingface-pytorch-inference:"


def wheels_for(work: Work, folder: Path, version: str = "") -> Path:
    """A file for every tool of a plan, in its versions."""
    folder.mkdir()
    tools = {name: v for stage in work.plan.stages for name, v in stage.tools.items()}
    for name, planned in tools.items():
        stem = f"{name.replace('-', '_')}-{version or planned}"
        (folder / f"{stem}-py3-none-any.whl").write_bytes(stem.encode())
    return folder


def rendered(tmp_path: Path, *more: str, version: str = "") -> tuple[Rendered, Work]:
    """A recipe whose tools no image of AWS has, with a folder of them."""
    bare = work_of(ONNX, BASE)
    folder = wheels_for(bare, tmp_path / "wheels", version)
    work = work_of(ONNX, (*BASE, f"job.wheels={folder}", *more))
    (recipe,) = work.recipes.values()
    work = replace(work, wheels=find_wheelhouse(recipe))
    return render(work, wheel=WHEEL), work


def test_a_stock_image_does_with_them(tmp_path: Path) -> None:
    """Without them it is refused; requests have a channel, and no key moved."""
    with pytest.raises(RecipeInvalid) as caught:
        render(work_of(ONNX, BASE), wheel=WHEEL)
    found, work = rendered(tmp_path)

    assert {problem.code for problem in caught.value.problems} == {"job.image-lacks"}
    assert "job: {wheels: ./wheels}" in caught.value.problems[0].hint
    bare = work_of(ONNX, BASE)
    assert [s.key for s in work.plan.stages] == [s.key for s in bare.plan.stages]
    for job, request in zip(found.graph.jobs, found.requests, strict=True):
        assert STOCK in job.image
        assert check_request(request.operation, request.document) == ()
        named = {row["InputName"] for row in request.document["ProcessingInputs"]}
        assert named == {"job", "wheels"}


def test_hashes_travel_in_the_channel_of_the_job(tmp_path: Path) -> None:
    """As pip reads them; other bytes make another folder and another job."""
    found, work = rendered(tmp_path)
    wheels = work.wheels
    assert wheels is not None
    text = found.requests[0].channel[WHEELS_FILE].decode()

    assert text.splitlines() == [
        f"./{name} --hash={digest_bytes(data)}" for name, data in wheels.files.items()
    ]
    (name, *_) = wheels.files
    (tmp_path / "wheels" / name).write_bytes(b"other")
    (recipe,) = work.recipes.values()
    again = replace(work, wheels=find_wheelhouse(recipe))
    other = render(again, wheel=WHEEL)
    assert other.graph.jobs[0].name != found.graph.jobs[0].name
    keys = [
        row["S3Input"]["S3Uri"]
        for each in (found, other)
        for row in each.requests[0].document["ProcessingInputs"]
        if row["InputName"] == "wheels"
    ]
    assert len(set(keys)) == 2


def test_training_jobs_have_the_channel_too(tmp_path: Path) -> None:
    found, _ = rendered(tmp_path, "job.kind=training")

    for request in found.requests:
        names = [row["ChannelName"] for row in request.document["InputDataConfig"]]
        assert names == ["job", "wheels"]


def test_another_version_than_the_plans_is_refused(tmp_path: Path) -> None:
    """The container would refuse it in its first minute."""
    with pytest.raises(RecipeInvalid) as caught:
        rendered(tmp_path, version="0.0.1")

    (problem, *_) = caught.value.problems
    assert problem.code == "job.wheel-version"
    assert "the wheel is of 0.0.1" in problem.message


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "cannot be read"),
        ([], "holds no wheels"),
        (["notes.txt"], "holds no wheels"),
        (["numpy.whl"], "not named as a wheel is"),
        (
            ["a_b-1-py3-none-any.whl", "A.B-2-py3-none-any.whl"],
            "two wheels of a-b",
        ),
    ],
)
def test_a_wrong_folder_is_told_at_its_line(
    files: list[str] | None, says: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{ONNX.read_text()}\njob:\n  wheels: ./wheels\n")
    for name in files or ():
        (tmp_path / "wheels").mkdir(exist_ok=True)
        (tmp_path / "wheels" / name).write_bytes(b"")
    if files == []:
        (tmp_path / "wheels").mkdir()
    (loaded,) = load_many([recipe])

    with pytest.raises(RecipeInvalid, match=says) as caught:
        find_wheelhouse(loaded)

    (problem,) = caught.value.problems
    assert problem.code == "job.wheels"
    assert problem.span is not None
    line = recipe.read_text().splitlines()[problem.span.line - 1]
    assert "wheels: ./wheels" in line


def test_a_lock_pins_them(tmp_path: Path) -> None:
    """By the folder's digest, among the images; other wheels are then refused."""
    _, work = rendered(tmp_path)
    (recipe,) = work.recipes.values()
    rows = uris_of(work.plan, [recipe])
    assert work.wheels is not None

    assert rows[LOCKED_AS] == work.wheels.digest
    lock = Lock(
        recipe="r",
        lmi_build="1",
        catalog="",
        architecture="",
        images={LOCKED_AS: work.wheels.digest},
    )
    locked = replace(recipe, lock=lock)
    assert find_wheelhouse(locked) == work.wheels
    name = next(iter(work.wheels.files))
    (tmp_path / "wheels" / name).write_bytes(b"other")
    with pytest.raises(RecipeInvalid, match="other wheels than the lock") as caught:
        find_wheelhouse(locked)
    assert caught.value.problems[0].code == "lock.changed"


def test_names_are_compared_as_pip_does() -> None:
    house = Wheelhouse(files={}, versions={"a-b-c": "1"}, digest=digest_bytes(b""))

    assert normal("A__b.C") == "a-b-c"
    assert house.has("a.b_c")
    assert not house.has("a-b")


def test_a_recipe_without_them_is_as_it_was() -> None:
    """No channel, no hashes, the same job's name."""
    work = work_of(ONNX, (*BASE, f"job.image={OWN_IMAGE}"))
    (recipe,) = work.recipes.values()

    assert find_wheelhouse(recipe) is None
    for request in render(work, wheel=WHEEL).requests:
        assert WHEELS_FILE not in request.channel
        assert len(request.document["ProcessingInputs"]) == 1
