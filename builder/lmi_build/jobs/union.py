"""Many recipes as one plan: each model looked up once, each shared stage once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lmi_build import api
from lmi_build.errors import Problem, RecipeInvalid, UsageInvalid
from lmi_build.jobs.locked_images import refuse_stale_images
from lmi_build.jobs.wheelhouse import find_wheelhouse
from lmi_build.values.recipe import JobSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lmi_build.digest import JSONValue
    from lmi_build.jobs.wheelhouse import Wheelhouse
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Plan

# What each recipe may say for its own stages; all else holds for every job.
_PER_STAGE = frozenset({"instance", "instances", "image", "images", "kind"})
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """
    A plan, with what it came from.

    Args:
        plan: Every stage of every recipe, each once.
        recipes: By the name of their artifact.
        facts: Their models, by the same name.
        spec: The job section that all recipes agree on.
        store: `s3://bucket/prefix` of the shared store.
        region: AWS region of the jobs.
        publish: Artifact to the `publish` section of its recipe.
        wheels: What jobs install beside what their images have.
    """

    plan: Plan
    recipes: Mapping[str, Recipe]
    facts: Mapping[str, ModelFacts]
    spec: JobSpec
    store: str
    region: str
    publish: Mapping[str, Mapping[str, JSONValue]] = field(default_factory=dict)
    wheels: Wheelhouse | None = None


def load_many(files: Iterable[Path], *, overrides: Sequence[str] = ()) -> list[Recipe]:
    """
    Every recipe of every file, a matrix as its variants.

    Raises:
        RecipeInvalid: Every problem of every file, and names that two recipes have.
    """
    found: list[Recipe] = []
    problems: list[Problem] = []
    for file in files:
        try:
            found += api.load_recipe(file, overrides=overrides)
        except RecipeInvalid as error:
            problems += error.problems
    first: dict[str, Recipe] = {}
    for recipe in found:
        other = first.setdefault(recipe.name, recipe)
        if other is not recipe:
            problems.append(_same_name(recipe, other))
    if problems:
        raise RecipeInvalid(tuple(problems))
    return found


def _same_name(recipe: Recipe, other: Recipe) -> Problem:
    return recipe.locate(
        Problem(
            code="job.same-name",
            message=f"two recipes are named `{recipe.name}`: {other.file} and"
            f" {recipe.file}",
            path="name",
            hint=f"rename one, such as `name: {recipe.name}-2`",
        )
    )


def gather(
    recipes: Sequence[Recipe], settings: Settings, *, needs_role: bool = False
) -> Work:
    """
    Plan recipes together.

    Args:
        recipes: From `load_many`.
        settings: The user's environment; its store and region go before the recipe's.
        needs_role: What is planned will be sent: somebody must say a role.

    Raises:
        RecipeInvalid: A recipe does not fit its model or providers, or recipes disagree
            about their jobs.
        UsageInvalid: `job.no-store`, `job.no-region` or `job.no-role`: nobody says
            where, or as whom; all that is missing is told at once.
        RemoteFailed: A model cannot be looked up.
    """
    spec = common_spec(recipes)
    store, region = _place(spec, settings, needs_role=needs_role)
    facts = api.resolve(recipes, settings)
    plan = api.make_plan(recipes, settings, facts=facts)
    refuse_stale_images(plan, recipes, settings)
    return Work(
        plan=plan,
        recipes={recipe.name: recipe for recipe in recipes},
        facts=facts,
        spec=spec,
        store=store,
        region=region,
        publish=_wishes(recipes),
        wheels=next((found for r in recipes if (found := find_wheelhouse(r))), None),
    )


def common_spec(recipes: Sequence[Recipe]) -> JobSpec:
    """
    The job section that holds for all.

    Recipes without one take that of the others.

    Raises:
        RecipeInvalid: `job.disagree`: two recipes say different things of what only all
            jobs together can have.
    """
    saying = [recipe for recipe in recipes if recipe.job is not None]
    if not saying:
        return JobSpec()
    first = saying[0]
    problems = [
        _disagree(first, recipe, item.name)
        for recipe in saying[1:]
        for item in fields(JobSpec)
        if item.name not in _PER_STAGE
        and _said(recipe, item.name) != _said(first, item.name)
    ]
    if problems:
        raise RecipeInvalid(tuple(problems))
    spec = first.job
    return spec if spec is not None else JobSpec()


def _said(recipe: Recipe, name: str) -> Any:
    return getattr(recipe.job, name)


def _disagree(first: Recipe, recipe: Recipe, name: str) -> Problem:
    return recipe.locate(
        Problem(
            code="job.disagree",
            message=f"`job.{name}` differs from that of {first.file}: jobs of recipes"
            " that are submitted together have one",
            path=f"job.{name}",
            hint=f"write the same in both, or for all: `--set job.{name}=...`",
        )
    )


def _wishes(recipes: Sequence[Recipe]) -> dict[str, Mapping[str, JSONValue]]:
    found: dict[str, Mapping[str, JSONValue]] = {}
    for recipe in recipes:
        section = recipe.document.get("publish")
        if isinstance(section, dict):
            found[recipe.name] = section
    return found


# What jobs must be told, in the order in which it is asked for: the error's code, the
# sentence, and ways to say it.
_UNSAID = {
    "job.no-store": (
        "nobody says where jobs share their results",
        (
            "write `job: {store: s3://BUCKET/PREFIX}` into the recipe, or give"
            " `--store s3://BUCKET/PREFIX`"
        ),
    ),
    "job.no-region": (
        "nobody says in which AWS region the jobs run",
        "write `job: {region: us-east-1}` into the recipe, or set AWS_REGION",
    ),
    "job.no-role": (
        "nobody says which role the jobs run as",
        (
            "write `job: {role: arn:aws:iam::ACCOUNT:role/NAME}`, or give"
            " `--set job.role=arn:aws:iam::ACCOUNT:role/NAME`"
        ),
    ),
}


def _place(spec: JobSpec, settings: Settings, *, needs_role: bool) -> tuple[str, str]:
    """The shared store, without a slash at its end, and the region."""
    known = settings.secrets.get("aws", {})
    store = settings.store or spec.store or ""
    region = spec.region or next((known[n] for n in _REGIONS if known.get(n)), "")
    said = {
        "job.no-store": store,
        "job.no-region": region,
        "job.no-role": spec.role or not needs_role,
    }
    unsaid = [code for code, value in said.items() if not value]
    if unsaid:
        raise UsageInvalid(
            "; ".join(_UNSAID[code][0] for code in unsaid),
            code=unsaid[0],
            hints=tuple(_UNSAID[code][1] for code in unsaid),
        )
    return store.rstrip("/"), region
