"""The page of docs/reference that has every field of a recipe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def recipe_page() -> str:
    """Every field of a recipe, from the schema that editors use."""
    from lmi_build.recipe.schema import recipe_schema

    schema = json.loads(json.dumps(recipe_schema()))
    lines = [
        "# Recipe fields\n",
        (
            "Editors complete and check recipes with [recipes/schema.json]"
            "(../../recipes/schema.json).\n"
        ),
        "| field | type | default | meaning |\n| --- | --- | --- | --- |",
    ]
    lines += list(field_rows(schema, schema, ""))
    return "\n".join(lines) + "\n"


def field_rows(
    node: Mapping[str, Any], schema: Mapping[str, Any], path: str
) -> Iterator[str]:
    """A row for every property, parents first."""
    for name, given in node.get("properties", {}).items():
        dotted = f"{path}.{name}" if path else name
        field = resolve(given, schema)
        default = json.dumps(field["default"]) if "default" in field else ""
        default = "" if default.startswith("{") else default
        text = str(field.get("description", "")).replace("\n", " ").replace("|", "/")
        yield (
            f"| `{dotted}` | {kind(field, schema)} |"
            f" {f'`{default}`' if default else ''} | {text} |"
        )
        if dotted != "matrix":
            yield from field_rows(one_of_all(field, schema), schema, dotted)


def one_of_all(field: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """
    A field whose choices are taken together.

    A section that depends on one of its own keys, as `quantize` on `method`, has a
    form for each value; the reader wants every key once, and says which forms know it.
    """
    choices = [resolve(choice, schema) for choice in field.get("oneOf", ())]
    if not choices:
        return field
    together: dict[str, Any] = {}
    for choice in choices:
        for name, given in choice["properties"].items():
            found = together.setdefault(name, {**resolve(given, schema), "forms": []})
            found["forms"].append(choice)
    for name, found in together.items():
        forms = found.pop("forms")
        values = [str(form["properties"]["method"]["const"]) for form in forms]
        if name == "method":
            found.pop("const", None)
            found["enum"] = values
            found["description"] = "How weights become smaller."
        elif len(forms) < len(choices):
            text = found.get("description", "")
            found["description"] = f"{text} Only with {', '.join(values)}."
    return {**field, "properties": together}


def resolve(field: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """A property with its reference, or its only non-null choice, taken in."""
    found = dict(field)
    choices = [c for c in found.get("anyOf", ()) if c.get("type") != "null"]
    if len(choices) == 1:
        found = {**resolve(choices[0], schema), **found}
    if len(found.get("allOf", ())) == 1:
        found = {**resolve(found["allOf"][0], schema), **found}
    reference = found.pop("$ref", None)
    if reference is None:
        return found
    target = schema["$defs"][reference.rpartition("/")[2]]
    return {**target, **found}


def kind(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A field's type in words."""
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "oneOf" in field:
        return "section"
    if "anyOf" in field:
        return " or ".join(kind(resolve(c, schema), schema) for c in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {kind(resolve(field.get('items', {}), schema), schema)}"
    words = {"object": "section", "integer": "integer", "number": "number"}
    name = str(field.get("type", "any"))
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        return f"{words.get(name, name)} {low} to {high}"
    return words.get(name, name)
