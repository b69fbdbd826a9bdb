"""Images of a lock: the catalogue's tags, and digests from a registry over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from faulty_s3 import FaultyS3
from lmi_build.errors import RecipeInvalid, RemoteFailed
from lmi_build.jobs.locked_images import (
    ask_digest,
    reference,
    references,
    refuse_stale_images,
    uris_of,
    with_digest,
)
from lmi_build.values.lock import Lock
from lmi_build.values.settings import FOLLOW, LOCKED, Settings
from locked_plans import RECIPE, Machine, plan_on, recipes

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCOUNT = "123456789012"
HOST = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com"
MANIFEST = (
    '{"schemaVersion": 2, "mediaType":'
    ' "application/vnd.docker.distribution.manifest.v2+json", "config": {}}'
)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    """AWS on this machine."""
    with FaultyS3() as running:
        yield running


@pytest.fixture
def settings(server: FaultyS3) -> Settings:
    """Somebody who may use it."""
    aws = {
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_ENDPOINT_URL": server.url,
    }
    return Settings(cache_dir=Path("/nowhere"), secrets={"aws": aws})


@pytest.fixture
def digest(settings: Settings) -> str:
    """An image in the registry, by its digest."""
    import boto3

    client: Any = boto3.client(
        "ecr",
        region_name="eu-west-1",
        endpoint_url=settings.secrets["aws"]["AWS_ENDPOINT_URL"],
        aws_access_key_id="made-up",
        aws_secret_access_key="made-up",
    )
    names = {
        row["repositoryName"] for row in client.describe_repositories()["repositories"]
    }
    if "team/mine" not in names:
        client.create_repository(repositoryName="team/mine")
        client.put_image(
            repositoryName="team/mine",
            imageManifest=MANIFEST,
            imageManifestMediaType=(
                "application/vnd.docker.distribution.manifest.v2+json"
            ),
            imageTag="1",
        )
    listed = client.describe_images(repositoryName="team/mine")["imageDetails"]
    client.close()
    return str(listed[0]["imageDigest"])


def test_a_registry_tells_the_digest_of_a_tag(settings: Settings, digest: str) -> None:
    """A tag becomes a digest, which stays when nobody asks again."""
    asked = references({"compile": f"{HOST}/team/mine:1"}, {}, settings, ask=True)
    kept = references({"compile": f"{HOST}/team/mine:1"}, asked, settings, ask=False)
    moved = references({"compile": f"{HOST}/team/mine:2"}, asked, settings, ask=False)

    assert asked == {"compile": f"team/mine:1@{digest}"}
    assert kept == asked
    assert moved == {"compile": "team/mine:2"}


@pytest.mark.usefixtures("digest")
@pytest.mark.parametrize("name", ["team/mine:2", "team/other:1"])
def test_an_image_that_is_not_there(settings: Settings, name: str) -> None:
    """A tag or a repository that does not exist is a remote failure with its name."""
    with pytest.raises(RemoteFailed) as caught:
        ask_digest(f"{HOST}/{name}", settings)

    assert caught.value.exit_code == 6
    assert f"{HOST}/{name}" in caught.value.message


def test_a_digest_holds_for_its_tag_alone() -> None:
    """A job takes the locked digest of exactly the image that would run anyway."""
    digest = "sha256:" + "a" * 64
    lock = Lock(
        recipe="sample",
        lmi_build="1",
        catalog="",
        architecture="",
        images={"compile": f"team/mine:1@{digest}"},
    )
    recipe = replace(recipes()[0], lock=lock)
    stages = {stage.kind: stage for stage in plan_on(Machine())[0].stages}

    assert with_digest(recipe, stages["compile"], f"{HOST}/team/mine:1") == (
        f"{HOST}/team/mine@{digest}"
    )
    for kind, uri in (("compile", "team/mine:2"), ("verify", "team/mine:1")):
        assert with_digest(recipe, stages[kind], f"{HOST}/{uri}") == f"{HOST}/{uri}"


JOB = """\
job:
  role: arn:aws:iam::123456789012:role/lmi
  region: eu-west-1
  image: 123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/mine:1
  images: {compile: 123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/trt:2}
"""
IMAGES = {
    "fetch": "team/mine:1",
    "quantize": "team/mine:1",
    "compile": "team/trt:2",
    "package": "team/mine:1",
    "verify": "team/mine:1",
}


def test_locked_names_images_that_are_others() -> None:
    """With `--locked`, jobs run in the images of the lock or not at all."""
    plan, lock = plan_on(Machine())
    lock = replace(lock, images=IMAGES)
    locked = Settings(cache_dir=Path("/nowhere"), lock_mode=LOCKED)
    stale = replace(lock, images={**IMAGES, "compile": "team/trt:1"})

    found = references(uris_of(plan, recipes(text=RECIPE + JOB)), {}, locked, ask=False)
    refuse_stale_images(plan, recipes(lock, RECIPE + JOB), locked)
    refuse_stale_images(
        plan, recipes(stale, RECIPE + JOB), replace(locked, lock_mode=FOLLOW)
    )
    with pytest.raises(RecipeInvalid) as caught:
        refuse_stale_images(plan, recipes(stale, RECIPE + JOB), locked)

    assert found == IMAGES
    (problem,) = caught.value.problems
    assert "image compile: team/trt:1 -> team/trt:2" in problem.message
    assert problem.span is not None


def test_a_recipe_without_jobs_has_no_images() -> None:
    """A lock of a recipe that says nothing of jobs names no image."""
    assert uris_of(plan_on(Machine())[0], recipes()) == {}


def test_hosts_are_left_out() -> None:
    """The same image in two regions is one reference; other registries keep theirs."""
    other = HOST.replace("eu-west-1", "us-east-1")

    assert reference(f"{HOST}/a/b:1") == reference(f"{other}/a/b:1") == "a/b:1"
    assert reference("nvcr.io/nvidia/x:1") == "nvcr.io/nvidia/x:1"
