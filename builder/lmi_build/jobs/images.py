"""Which image a stage's job runs in, with its registry in the job's region."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lmi_build.catalog.images import REPOSITORY, image_uri, regions, registries
from lmi_build.catalog.job_images import default_image
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.catalog.releases import releases
from lmi_build.errors import Problem
from lmi_build.text import did_you_mean, join_words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmi_build.jobs.needs import Need
    from lmi_build.jobs.wheelhouse import Wheelhouse
    from lmi_build.values.stage import Stage

# The host of a registry of ECR, in any partition, and what stands behind it.
ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.[a-z0-9.-]+/(?P<rest>.+)\Z"
)
_SUFFIX = "amazonaws.com"
_DIGEST = "sha256:"
_ABSENT = "absent"
_MOST_REGIONS = 6


def choose_image(
    stage: Stage, need: Need, region: str, wheels: Wheelhouse | None = None
) -> str | Problem:
    """
    The image of a stage, or why there is none.

    The recipe's own comes first; then that of the release that compiles; then the
    catalogue's for stages without a device, if it has what the stage needs. A digest
    alone pins the one that the catalogue names.

    Args:
        stage: Of a plan.
        need: What it asks of its machine.
        region: Of the job.
        wheels: What the job installs beside what its image has.
    """
    if need.image and not need.image.startswith(_DIGEST):
        return need.image
    found = _release_image(need) if need.release else _plain_image(stage, need, wheels)
    if isinstance(found, Problem):
        return found
    repository, tag = found
    try:
        uri = image_uri(tag, region, repository=repository)
    except KeyError:
        return _no_region(repository, tag, region)
    return f"{uri.rpartition(':')[0]}@{need.image}" if need.image else uri


def in_region(uri: str, region: str) -> str:
    """
    The same image in the registry of another region; what is not in ECR as it is.

    The registries of AWS change their account with the region; a user's own keeps it.

    Args:
        uri: Of an image.
        region: Such as `us-east-1`.
    """
    match = ECR.match(uri)
    if match is None or match["region"] == region:
        return uri
    known = registries()
    there = known.get(region)
    suffix = there.suffix if there else _SUFFIX
    if there and _is_of_aws(match["account"], match["region"]):
        return f"{there.host}/{match['rest']}"
    return f"{match['account']}.dkr.ecr.{region}.{suffix}/{match['rest']}"


def _is_of_aws(account: str, region: str) -> bool:
    row = registries().get(region)
    return row is not None and row.account == account


def region_problem(uri: str, region: str, *, path: str) -> Problem | None:
    """
    Why a job cannot pull an image: its registry is that of another region.

    SageMaker refuses such a request for every kind of job and for models: "Invalid
    region us-east-2 in image URI ... Please provide an image URI in region us-west-2"
    (CreateProcessingJob, github.com/aws/amazon-sagemaker-examples/issues/2422),
    CreateTrainingJob with other words (github.com/aws-samples/mlops-amazon-sagemaker/
    issues/9), and CreateModel with "Cross region ECR image pulls are not allowed".

    Args:
        uri: Of the image.
        region: Of the job.
        path: Dotted path of what names the image.
    """
    match = ECR.match(uri)
    if match is None or match["region"] == region:
        return None
    right = in_region(uri, region)
    hint = f"write `{right}`"
    if not _is_of_aws(match["account"], match["region"]):
        hint += ", and push the image there too (ECR's replication rules can do it)"
    return Problem(
        code="job.image-region",
        message=f"image `{uri}` is in the registry of `{match['region']}` and the job"
        f" runs in `{region}`: SageMaker pulls from ECR in the job's own region alone",
        path=path,
        hint=hint,
    )


def _release_image(need: Need) -> tuple[str, str] | Problem:
    """Repository and tag of the image that compiles."""
    row = releases().get(need.release) or neuron_releases().get(need.release)
    if row is not None and row.tag:
        return getattr(row, "repository", REPOSITORY), row.tag
    return Problem(
        code="job.no-image",
        message=f"no image of `{need.release}` was published where jobs can pull it",
        path=need.image_path,
        hint="push one of your own to ECR and name it: `job: {images: {compile: URI}}`,"
        " or choose another `compile.release`",
        unsupported=True,
    )


def _plain_image(
    stage: Stage, need: Need, wheels: Wheelhouse | None
) -> tuple[str, str] | Problem:
    """Repository and tag of the image for stages that need no device."""
    image = default_image()
    # What is absent here is needed all the same: a stage names nothing it can do
    # without.
    lacking = [
        name
        for name in sorted(stage.tools)
        if not image.has(name) and not (wheels and wheels.has(name))
    ]
    if not lacking or stage.toolchain:
        return image.repository, image.tag
    return Problem(
        code="job.image-lacks",
        message=f"stage `{stage.kind}` needs {join_words(lacking, last='and')}, which"
        " no image of AWS in the catalogue has",
        path=need.image_path,
        hint=f"build one from `{image.repository}:{image.tag}` with `pip install"
        f" {_requirements(stage)}`, push it to ECR, and name it: `job: {{image: URI}}`;"
        " or name a folder of wheels of what it lacks: `job: {wheels: ./wheels}`",
    )


def _requirements(stage: Stage) -> str:
    """A stage's tools as pip takes them, in the plan's versions where it has them."""
    return " ".join(
        name if version == _ABSENT else f"{name}=={version.partition('+')[0]}"
        for name, version in sorted(stage.tools.items())
    )


def other_versions(
    stages: Iterable[Stage], uri: str, wheels: Wheelhouse | None = None
) -> dict[str, tuple[str, str]]:
    """
    Tools that the catalogue knows an image to have in another version.

    Args:
        stages: That run in it.
        uri: The image; nothing is known of one that is not the catalogue's.
        wheels: What is installed beside it, and so not the image's.

    Returns:
        Distribution to its version in the image and in the plan.
    """
    image = default_image()
    if f"/{image.repository}:{image.tag}" not in uri:
        return {}
    planned = {n: v for s in stages if not s.toolchain for n, v in s.tools.items()}
    return {
        name: (version, planned[name])
        for name, version in image.versions.items()
        if name in planned
        and planned[name].partition("+")[0] != version
        and not (wheels and wheels.has(name))
    }


def _no_region(repository: str, tag: str, region: str) -> Problem:
    having = regions(tag, repository=repository)
    near = did_you_mean(region, having)
    few = join_words(having[:_MOST_REGIONS])
    return Problem(
        code="job.region-without-image",
        message=f"region `{region}` has no image `{repository}:{tag}`",
        path="job.region",
        hint=f"did you mean `{near}`?"
        if near and near != region
        else f"use another of its {len(having)} regions, such as {few}, or name a copy"
        " of your own: `job: {image: URI}`",
    )
