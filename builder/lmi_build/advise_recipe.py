"""The recipe that an advice ends in, checked before it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build import api
from lmi_build.advice.draft import drafts
from lmi_build.advise import family_words
from lmi_build.errors import RecipeInvalid, UsageInvalid
from lmi_build.recipe.load import parse_recipe
from lmi_build.recipe.new_file import write_new

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.advice.advisor import Answer, Verdict
    from lmi_build.values.bounds import Bounds
    from lmi_build.values.recipe import Recipe
    from lmi_build.values.settings import Settings


def write_recipe(
    answer: Answer,
    out: Path,
    settings: Settings,
    *,
    name: str,
    source: str,
    config: Mapping[str, Any],
    bounds: Bounds,
) -> Recipe:
    """
    Write the recipe for the winner; an existing file is never changed.

    Args:
        answer: Whose winner lmi-build builds for.
        out: The file.
        settings: The user's environment.
        name: Of the artifact.
        source: Of the model, from the folder of `out`.
        config: Of the model; weights that are quantized already stay as they are.
        bounds: What the engine shall hold.

    Returns:
        The recipe, checked as `validate` checks it.

    Raises:
        UsageInvalid: `advice.not-built`, `advice.no-source`, `init.exists` or
            `init.unwritable`.
        RecipeInvalid: What the backend says of the first draft, where it takes none.
    """
    verdict = _to_write(answer, source)
    quantized = "quantization_config" in config
    method = "none" if quantized else answer.question.technique or "none"
    refused: RecipeInvalid | None = None
    for text in drafts(
        verdict,
        answer.question,
        name=name,
        source=source,
        method=method,
        bounds=bounds,
        dtype=str(config.get("torch_dtype") or config.get("dtype") or ""),
    ):
        try:
            recipes = parse_recipe(text, file=str(out))
            api.check_offline(recipes, settings)
        except RecipeInvalid as error:
            refused = refused or error
            continue
        write_new(out, text, rename="--write FILE")
        return recipes[0]
    assert refused is not None  # noqa: S101 - there is at least one draft
    raise refused


def _to_write(answer: Answer, source: str) -> Verdict:
    winner = answer.winner
    if winner is None or not winner.option.port.builds(answer.question.family):
        title = winner.option.system.title if winner else "no system"
        raise UsageInvalid(
            f"the answer is {title}, which lmi-build does not build for",
            code="advice.not-built",
            hints=(
                *((winner.option.system.otherwise,) if winner else ()),
                "`--built` leaves only what lmi-build builds for",
            ),
        )
    if source in family_words():
        raise UsageInvalid(
            f"`{source}` names a family, and a recipe needs a model",
            code="advice.no-source",
            hints=("give `--model` a hub repository, a folder or an s3:// prefix",),
        )
    return winner
