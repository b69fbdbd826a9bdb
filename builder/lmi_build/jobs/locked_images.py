"""
Images that a lock names: `repository:tag`, by digest once a registry was asked.

A registry of AWS has the same repository in every region, so its host is left out; the
digest of an image is that of its content.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.errors import Problem, RecipeInvalid, RemoteFailed
from lmi_build.jobs.faults import explain, explained
from lmi_build.jobs.images import ECR, choose_image
from lmi_build.jobs.needs import is_local, need_of
from lmi_build.jobs.wheelhouse import LOCKED_AS, find_wheelhouse
from lmi_build.plan.locked import stale_problems
from lmi_build.recipe.lock import lock_path
from lmi_build.remote.aws import make_session
from lmi_build.values.settings import LOCKED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.values.recipe import Recipe
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan, Stage

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
# The forms of an image's manifest; the digest of a list of them is the tag's.
_MANIFESTS = (
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
)
# Where the catalogue's images are looked up when no recipe says a region.
_REGION = "us-east-1"


def reference(uri: str) -> str:
    """An image without the host of its ECR registry; any other URI as it is."""
    match = ECR.match(uri)
    return match["rest"] if match else uri


def uris_of(plan: Plan, recipes: Sequence[Recipe]) -> dict[str, str]:
    """
    The image of each kind of stage that runs in jobs.

    Recipes without a `job` section have none. Where variants differ, each stands as
    `variant/kind`. Wheels that are laid over them stand beside, by their digest.

    Args:
        plan: Of these recipes, and maybe of others.
        recipes: Of one file.
    """
    by_name = {recipe.name: recipe for recipe in recipes}
    brought = {r.name: find_wheelhouse(r, held=False) for r in recipes}
    stages = {stage.key: stage for stage in plan.stages}
    found: dict[str, dict[str, str]] = {}
    for artifact in plan.artifacts:
        spec = by_name[artifact.name].job if artifact.name in by_name else None
        for kind, key in artifact.stages.items():
            stage = stages[key]
            if spec is None or is_local(stage, spec):
                continue
            need = need_of(stage, spec)
            region = spec.region or _REGION
            image = choose_image(stage, need, region, brought[artifact.name])
            if not isinstance(image, Problem):
                found.setdefault(kind, {})[artifact.name] = image
    wheels = next((house for house in brought.values() if house), None)
    rows: dict[str, str] = {LOCKED_AS: wheels.digest} if wheels else {}
    for kind, images in found.items():
        if len(set(images.values())) == 1:
            rows[kind] = next(iter(images.values()))
        else:
            rows |= {f"{name}/{kind}": image for name, image in images.items()}
    return rows


def refuse_stale_images(
    plan: Plan, recipes: Sequence[Recipe], settings: Settings
) -> None:
    """
    With `--locked`, hold the images that jobs would run in against the locks.

    Args:
        plan: Of all recipes.
        recipes: Of one file or several.
        settings: How locks are used.

    Raises:
        RecipeInvalid: `lock.stale`, with every difference.
    """
    if settings.lock_mode != LOCKED:
        return
    problems: list[Problem] = []
    for file in dict.fromkeys(recipe.file for recipe in recipes):
        own = [recipe for recipe in recipes if recipe.file == file]
        old = own[0].lock
        if old is None:
            continue
        uris = uris_of(plan, own)
        images = references(uris, old.images, settings, ask=False)
        at = str(lock_path(Path(file)))
        problems += stale_problems(own[0], at, old, replace(old, images=images))
    if problems:
        raise RecipeInvalid(tuple(problems))


def with_digest(recipe: Recipe, stage: Stage, uri: str) -> str:
    """An image by the digest that the recipe's lock has of its tag, if it has one."""
    if recipe.lock is None or "@" in uri:
        return uri
    for scope in (f"{recipe.name}/{stage.kind}", stage.kind):
        locked, _, digest = recipe.lock.images.get(scope, "").partition("@")
        if digest and locked == reference(uri):
            return f"{uri.rpartition(':')[0]}@{digest}"
    return uri


def references(
    uris: Mapping[str, str], locked: Mapping[str, str], settings: Settings, *, ask: bool
) -> dict[str, str]:
    """
    What a lock says of images.

    Args:
        uris: What runs in them to their URI.
        locked: What the lock says so far; a digest of the same tag is kept.
        settings: Credentials.
        ask: Whether registries are asked for digests.

    Raises:
        RemoteFailed: A registry refuses or vanished; `lock.no-image`.
    """
    found = {}
    for scope, uri in sorted(uris.items()):
        old, _, digest = locked.get(scope, "").partition("@")
        plain = reference(uri)
        if "@" not in plain and ask and ECR.match(uri):
            found[scope] = f"{plain}@{ask_digest(uri, settings)}"
        elif digest and old == plain:
            found[scope] = f"{plain}@{digest}"
        else:
            found[scope] = plain
    return found


def ask_digest(uri: str, settings: Settings) -> str:
    """
    The digest that a tag of ECR stands for today.

    Args:
        uri: Host, repository and tag.
        settings: Credentials, and an endpoint of the user's own.

    Raises:
        RemoteFailed: `lock.no-image`: there is no such tag; or the registry refuses.
    """
    match = ECR.match(uri)
    if match is None:
        raise ValueError(f"{uri} is not in ECR")
    repository, _, tag = match["rest"].rpartition(":")
    doing, region = f"asking for the digest of {uri}", match["region"]
    client = _client(settings, region)
    try:
        with explained(doing, region):
            answer = client.batch_get_image(
                registryId=match["account"],
                repositoryName=repository,
                imageIds=[{"imageTag": tag}],
                acceptedMediaTypes=list(_MANIFESTS),
            )
    finally:
        client.close()
    images = answer.get("images", ())
    digest = str(images[0]["imageId"].get("imageDigest", "")) if images else ""
    if not _DIGEST.match(digest):
        reasons = ", ".join(row["failureReason"] for row in answer.get("failures", ()))
        raise RemoteFailed(
            f"{uri} is not in its registry: {reasons or 'it has no digest'}",
            code="lock.no-image",
            hints=(
                "check the tag, and `job.image` or `compile.release` of the recipe",
            ),
        )
    return digest


def _client(settings: Settings, region: str) -> Any:
    from botocore.exceptions import BotoCoreError

    aws = settings.secrets.get("aws", {})
    try:
        return make_session(settings, region=region).client(
            "ecr", endpoint_url=aws.get("AWS_ENDPOINT_URL") or None
        )
    except (BotoCoreError, ValueError) as error:
        raise explain(error, doing="connecting to ECR", region=region) from error
