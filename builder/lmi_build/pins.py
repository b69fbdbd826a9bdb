"""The models of recipes with their calibration data, looked up once each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.errors import (
    LmiBuildError,
    Problem,
    RecipeInvalid,
    SourceInvalid,
    Unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmi_build.values.dataset import DatasetFacts
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.settings import Settings

# Faults of a source that are faults of what the recipe says, by the key that says it.
_SAID_IN_RECIPE = {
    "source.bad-name": "model.source",
    "source.not-found": "model.source",
    "source.bad-dtype": "model.dtype",
    "source.revision-missing": "model.revision",
    "source.remote-code": "model.trust_remote_code",
}
_DATASET = "quantize.calibration.dataset"
_SAID_ABOUT_DATA = {
    "calibration.dataset": _DATASET,
    "calibration.no-data-files": _DATASET,
    "calibration.unreadable": _DATASET,
    "source.bad-name": _DATASET,
    "source.revision-missing": _DATASET,
}


def resolve(
    recipes: Sequence[Recipe],
    settings: Settings,
    *,
    hashed: bool = True,
    served: bool = True,
) -> dict[str, ModelFacts]:
    """
    Pin down the model of every recipe; each distinct model is looked up once.

    Args:
        recipes: Checked recipes.
        settings: The user's environment.
        hashed: Whether local weights are named by their content, as a plan needs it.
        served: Whether models must have a tokenizer; sizes and costs need none.

    Returns:
        Recipe name to facts.

    Raises:
        RecipeInvalid: The recipe names something that is not a model, or its lock asks
            for something else than there is.
        RemoteFailed: The hub or S3 cannot be reached or refuses.
        SourceInvalid: The model's files are broken or refused.
    """
    from lmi_build.locks import explain_lost, followed_model, refuse_changed
    from lmi_build.plan.locked import require_locks
    from lmi_build.sources.resolve import resolve_model

    require_locks(recipes, settings.lock_mode)
    found: dict[object, ModelFacts] = {}
    by_name: dict[str, ModelFacts] = {}
    for recipe in recipes:
        base = _base(recipe)
        spec, entry = followed_model(recipe, settings)
        wanted = (spec, _lies_at(spec.source, base))
        if wanted not in found:
            try:
                # A lock is held against what the files are, so they are read.
                hashes = hashed or entry is not None
                facts = resolve_model(
                    spec, settings=settings, base=base, hashed=hashes, served=served
                )
            except SourceInvalid as error:
                raise _placed(explain_lost(error, recipe, entry), recipe) from error
            found[wanted] = facts
        by_name[recipe.name] = found[wanted]
        refuse_changed(recipe, entry, found[wanted])
    return by_name


def _placed(
    error: LmiBuildError, recipe: Recipe, said: Mapping[str, str] = _SAID_IN_RECIPE
) -> LmiBuildError:
    """Give a fault that the recipe makes its place in the recipe."""
    path = said.get(error.code)
    if path is None:
        return error
    problem = Problem(
        code=error.code,
        message=error.message,
        path=path,
        hint=error.hints[0] if error.hints else "",
    )
    return RecipeInvalid((recipe.locate(problem),))


def _base(recipe: Recipe) -> Path:
    """The folder that relative paths of a recipe start from."""
    return Path(recipe.file).absolute().parent


def _lies_at(source: str, base: Path) -> Path | None:
    """Where a local source lies; None for others, the same from every recipe."""
    from lmi_build.sources.resolve import local_path, source_kind

    try:
        kind = source_kind(source, base=base)
    except SourceInvalid:
        return base  # looking it up says what is wrong, and where
    return None if kind in {"hub", "s3"} else local_path(source, base=base)


def pin_calibration(recipes: Sequence[Recipe], settings: Settings) -> list[Recipe]:
    """Resolve the calibration data of every recipe; each is looked up once."""
    from lmi_build.locks import explain_lost, followed_data, refuse_changed
    from lmi_build.plan.locked import require_locks
    from lmi_build.sources.dataset import resolve_dataset

    require_locks(recipes, settings.lock_mode)
    found: dict[object, DatasetFacts | None] = {}
    pinned = []
    for recipe in recipes:
        spec = recipe.quantize.calibration
        if spec is None:
            pinned.append(recipe)
            continue
        base = _base(recipe)
        asked, entry = followed_data(recipe, spec, settings)
        lies = None if ":" in asked.dataset else base / asked.dataset
        wanted = (asked.dataset, spec.num_samples * spec.max_seq_len, lies)
        if wanted not in found:
            try:
                facts = resolve_dataset(asked, settings=settings, base=base)
            except (SourceInvalid, Unsupported) as error:
                lost = explain_lost(error, recipe, entry)
                raise _placed(lost, recipe, _SAID_ABOUT_DATA) from error
            found[wanted] = facts and replace(facts, source=spec.dataset)
        refuse_changed(recipe, entry, found[wanted])
        placed = replace(spec, facts=found[wanted])
        quantize = replace(recipe.quantize, calibration=placed)
        pinned.append(replace(recipe, quantize=quantize))
    return pinned
