"""`recipes/schema.json` is current, and agrees with the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from ruamel.yaml import YAML

from lmi_build.recipe.schema import recipe_schema, schema_text
from recipe_strategies import RECIPES
from recipe_texts import TINY

RECIPES_DIR = Path(__file__).parents[2] / "recipes"
VALIDATOR = jsonschema.Draft202012Validator(recipe_schema())


def violations(document: Any) -> list[str]:
    """What an editor would underline."""
    return [error.message for error in VALIDATOR.iter_errors(document)]


def read(text: str) -> Any:
    """YAML by another reader than ours."""
    return YAML(typ="safe", pure=True).load(text)


def test_the_schema_is_current() -> None:
    """The file is what `scripts/gen_schema.py` writes."""
    path = RECIPES_DIR / "schema.json"

    assert schema_text() == path.read_text(encoding="utf-8")


def test_the_schema_is_a_schema() -> None:
    """It obeys the draft that it names."""
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize(
    "path", sorted(RECIPES_DIR.glob("*/*.yaml")), ids=lambda path: path.name
)
def test_shipped_recipes_obey_it(path: Path) -> None:
    """Editors underline nothing in the repository's own recipes."""
    text = path.read_text(encoding="utf-8")

    assert violations(read(text)) == []
    assert text.startswith("# yaml-language-server: $schema=../schema.json\n")


@given(RECIPES)
@settings(max_examples=30, deadline=None)
def test_sound_recipes_obey_it(raw: dict[str, Any]) -> None:
    """What the loader takes, an editor takes."""
    assert violations(raw) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max_input_len: 64", "max_input_len: 0"),
        ("max_input_len: 64", "max_inptu_len: 64"),
        ("max_input_len: 64", "max_input_len:"),
        ("method: gptq", "method: gptqq"),
        ("method: gptq", "method: smoothquant"),
        ("name: tiny", "name: Tiny"),
        ("schema: lmi-build/v1", "schema: lmi-build/v2"),
    ],
)
def test_faults_are_underlined(old: str, new: str) -> None:
    """What the loader refuses by form, an editor refuses as well."""
    assert violations(read(TINY.replace(old, new))) != []


def test_every_key_is_described() -> None:
    """An editor can show a sentence for each key."""

    def undescribed(schema: Any, path: str) -> list[str]:
        if not isinstance(schema, dict):
            return []
        found = []
        for name, item in schema.get("properties", {}).items():
            if not ({"description", "$ref", "oneOf"} & set(item)):
                found.append(f"{path}.{name}")
        for name, item in schema.get("$defs", {}).items():
            found += undescribed(item, name)
        return found

    schema = json.loads(schema_text())
    schema["properties"].pop("matrix")

    assert undescribed(schema, "") == []
