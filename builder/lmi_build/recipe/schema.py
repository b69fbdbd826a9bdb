"""JSON Schema of a recipe, for editors; `recipes/schema.json` is this, checked in."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from lmi_build.recipe.keys import FREE, all_paths
from lmi_build.recipe.matrix import MAX_VARIANTS
from lmi_build.recipe.model import RecipeModel

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCALAR_OR_SECTION = {
    "type": ["string", "number", "boolean", "array", "object"],
}


def recipe_schema() -> dict[str, Any]:
    """
    Describe the grammar.

    Returns:
        A JSON Schema of draft 2020-12.
    """
    schema = _clean(RecipeModel.model_json_schema(by_alias=True))
    schema["properties"]["matrix"] = _matrix_schema()
    head: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lmi-build recipe",
        "description": "What model becomes what artifact, and where it goes.",
    }
    return head | {k: v for k, v in schema.items() if k not in head}


def schema_text() -> str:
    """The schema as it stands in `recipes/schema.json`."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=True) + "\n"


def _matrix_schema() -> dict[str, Any]:
    paths = [p for p in all_paths() if p not in {"schema", "name", "matrix"}]
    values = {"type": "array", "minItems": 1, "items": _SCALAR_OR_SECTION}
    free = f"^({'|'.join(map(re.escape, FREE))})\\..+$"
    cells = {
        "type": "array",
        "items": {
            "type": "object",
            "minProperties": 1,
            "properties": {path: {} for path in paths},
            "patternProperties": {free: {}},
            "additionalProperties": False,
        },
    }
    return {
        "type": "object",
        "description": "Dotted path to a list of values; every combination, at most "
        f"{MAX_VARIANTS}, becomes an artifact of its own.",
        "minProperties": 1,
        "properties": {
            **dict.fromkeys(paths, values),
            "exclude": {**cells, "description": "Combinations to leave out."},
            "include": {**cells, "description": "Further variants."},
        },
        "patternProperties": {free: values},
        "additionalProperties": False,
        "examples": [{"quantize.method": ["gptq", "int8"]}],
    }


def _clean(value: Any) -> Any:
    """Drop generated titles and nulls: an empty value is a fault in a recipe."""
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if not isinstance(value, dict):
        return value
    cleaned = {
        key: _clean_properties(item) if key == "properties" else _clean(item)
        for key, item in value.items()
        if key not in {"title", "discriminator"} and (key, item) != ("default", None)
    }
    return _without_null(cleaned)


def _clean_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _clean(item) for name, item in properties.items()}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    options = schema.get("anyOf")
    if not options or {"type": "null"} not in options:
        return schema
    kept = [option for option in options if option != {"type": "null"}]
    rest = {key: item for key, item in schema.items() if key != "anyOf"}
    return {**kept[0], **rest} if len(kept) == 1 else {**rest, "anyOf": kept}
