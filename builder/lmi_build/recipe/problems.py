"""Pydantic's findings told as problems: code, place, numbers, and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmi_build.errors import Problem
from lmi_build.recipe.forms import check_enum_hint
from lmi_build.recipe.keys import grammar, renamed, unknown_key
from lmi_build.recipe.methods import METHODS
from lmi_build.recipe.model import RecipeModel
from lmi_build.recipe.spellings import VALUES, YAML_1_1_BOOLEANS
from lmi_build.recipe.words import child_path, nearest, show
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic_core import ErrorDetails

    from lmi_build.recipe.nodes import Node

# What pydantic wanted -> our word for it.
_WANTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "`true` or `false`",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
}
_LIMITS: Mapping[str, tuple[str, str]] = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "more than"),
    "less_than": ("lt", "less than"),
}
# What people mean when they write a section as one word.
_MAIN_KEYS: Mapping[str, str] = {
    "model": "source",
    "quantize": "method",
    "compile": "backend",
    "publish": "to",
}
_EXAMPLES: Mapping[str, str] = {
    "a list": "[a, b]",
    "a mapping": "{name: value}",
}


def translate(root: Node, errors: Sequence[ErrorDetails]) -> list[Problem]:
    """
    Turn what pydantic found into problems with places in the text.

    A missing key is not told where an unknown one is plainly meant to be it.
    """
    problems = [_translate_one(root, error) for error in errors]
    meant = {
        path for problem in problems for path in _meant_by(problem.code, problem.path)
    }
    return [
        p for p in problems if p.code != "recipe.missing-key" or p.path not in meant
    ]


def _meant_by(code: str, path: str) -> tuple[str, ...]:
    section, _, key = path.rpartition(".")
    if code == "recipe.renamed-key":
        return (renamed(section, key),)
    if code == "recipe.unknown-key":
        near = nearest(key, grammar().get(section, []))
        return (child_path(section, near),) if near else ()
    return ()


def _translate_one(root: Node, error: ErrorDetails) -> Problem:
    kind = error["type"]
    loc = [item for item in error["loc"] if item != "[key]"]
    if loc[0] == "quantize" and len(loc) > 1 and loc[1] in METHODS:
        del loc[1]
    if kind == "union_tag_invalid":
        loc.append("method")
    path, node = _follow(root, loc)
    if kind == "extra_forbidden":
        section = _follow(root, loc[:-1])[0]
        return unknown_key(section, str(loc[-1]), _method(root), node.key_span)
    if kind in {"missing", "union_tag_not_found"}:
        key = "method" if kind == "union_tag_not_found" else str(loc[-1])
        return _missing(path, key, node)
    span = node.key_span if error["loc"][-1] == "[key]" else node.place
    code, message, hint = _describe(kind, path, node, error.get("ctx", {}))
    return Problem(code=code, message=message, path=path, hint=hint, span=span)


def _follow(root: Node, loc: Sequence[Any]) -> tuple[str, Node]:
    """Walk as far as the text goes."""
    path, node = "", root
    for item in loc:
        if isinstance(node.value, dict) and item in node.value:
            path, node = child_path(path, item), node.value[item]
        elif isinstance(node.value, list) and isinstance(item, int):
            path, node = f"{path}[{item}]", node.value[item]
        else:
            break
    return path, node


def _method(root: Node) -> str:
    section = root.value.get("quantize") if isinstance(root.value, dict) else None
    if section and isinstance(section.value, dict) and "method" in section.value:
        method = section.value["method"].value
        return method if isinstance(method, str) and method in METHODS else ""
    return ""


def _missing(path: str, key: str, node: Node) -> Problem:
    full = child_path(path, key)
    return Problem(
        code="recipe.missing-key",
        message=f"`{full}` is missing",
        path=full,
        hint=_missing_hint(path, key),
        span=node.place,
    )


def _missing_hint(path: str, key: str) -> str:
    if key == "method":
        return f"add `method:` with {join_words(list(METHODS))}"
    example = _example(path, key)
    if path:
        return f"add `{key}: {example}` to `{path}`"
    return f"add `{key}: {example}`" if example else f"add a section `{key}:`"


def _example(path: str, key: str) -> str:
    """An example from the grammar, as it would stand in a recipe."""
    model: Any = RecipeModel
    for step in path.split(".") if path else ():
        model = model.model_fields[step].annotation
        args = [a for a in getattr(model, "__args__", ()) if hasattr(a, "model_fields")]
        model = args[0] if args else model
    for name, info in model.model_fields.items():
        if key == (info.alias or name):
            if info.examples:
                return str(info.examples[0])
            fields = getattr(info.annotation, "model_fields", {})
            inner = {n: f.examples[0] for n, f in fields.items() if f.is_required()}
            joined = ", ".join(f"{n}: {example}" for n, example in inner.items())
            return f"{{{joined}}}"
    return "..."


def _describe(
    kind: str, path: str, node: Node, ctx: Mapping[str, Any]
) -> tuple[str, str, str]:
    last = path.rpartition(".")[2]
    if kind == "recipe_form":
        return ctx["code"], ctx["message"], ctx["hint"]
    if kind in {"literal_error", "union_tag_invalid"}:
        expected = ctx["expected" if kind == "literal_error" else "expected_tags"]
        return _unknown_value(path, last, node, str(expected))
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        limit = f"{ctx[name]:g}" if isinstance(ctx[name], float) else str(ctx[name])
        return (
            "recipe.out-of-range",
            f"`{path}` is {show(node.text)}, it must be {words} {limit}",
            _range_hint(last, kind, limit),
        )
    if kind in {"too_short", "too_long"}:
        return (
            "recipe.out-of-range",
            f"`{path}` has {ctx['actual_length']} items",
            f"write at least {ctx['min_length']}"
            if kind == "too_short"
            else f"write at most {ctx['max_length']}",
        )
    return _wrong_type(kind, path, node)


def _range_hint(last: str, kind: str, limit: str) -> str:
    if last == "damp_percent":
        return "write a share between 0 and 1, such as `0.01` for one percent"
    if last == "min_top1_agreement":
        return "write a share between 0 and 1, such as `0.85`"
    if kind in {"greater_than_equal", "less_than_equal"}:
        return f"write `{limit}` or {'more' if kind[0] == 'g' else 'less'}"
    return f"write a number {'above' if kind[0] == 'g' else 'below'} {limit}"


def _unknown_value(
    path: str, last: str, node: Node, expected: str
) -> tuple[str, str, str]:
    if path == "schema":
        return (
            "recipe.schema-version",
            f"this version reads `lmi-build/v1`, not `{show(node.text)}`",
            "write `schema: lmi-build/v1`",
        )
    options = [item.strip("' ") for item in expected.replace(" or ", ", ").split(",")]
    if isinstance(node.value, dict | list):
        return (
            "recipe.wrong-type",
            f"`{path}` is {describe(node)}, it must be one of its words",
            f"write {join_words(options)}",
        )
    hint = check_enum_hint(node.text, options, dict(VALUES.get(last, {})))
    return (
        "recipe.unknown-value",
        f"`{path}` cannot be {describe(node)}",
        hint,
    )


def describe(node: Node) -> str:
    """Name what stands in the text, for `it must be X, not ...`."""
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list"
    if node.value is None:
        return "an empty value"
    if isinstance(node.value, str):
        return f"the text `{show(node.text)}`"
    return f"`{show(node.text)}`"


def _wrong_type(kind: str, path: str, node: Node) -> tuple[str, str, str]:
    wanted = _WANTED.get(kind, "something else")
    message = f"`{path}` must be {wanted}, not {describe(node)}"
    return "recipe.wrong-type", message, _type_hint(wanted, path, node)


def _type_hint(wanted: str, path: str, node: Node) -> str:
    last = path.rpartition(".")[2].partition("[")[0]
    text = node.text
    if wanted == "text" and not isinstance(node.value, dict | list):
        return f'quote it: `"{show(text)}"`'
    if wanted == "`true` or `false`":
        near = YAML_1_1_BOOLEANS.get(text.lower())
        if near:
            return f"write `{near}`; YAML 1.2 knows only `true` and `false`"
        return "write `true` or `false`, without quotes"
    if wanted in {"a whole number", "a number"}:
        return _number_hint(wanted, last, text, node)
    if wanted == "a list" and not isinstance(node.value, dict):
        return f"write `{last}: [{show(text)}]`"
    if wanted in _EXAMPLES:
        return f"write `{last}: {_EXAMPLES[wanted]}`"
    if path in _MAIN_KEYS and isinstance(node.value, str):
        return f"write `{path}: {{{_MAIN_KEYS[path]}: {show(text)}}}`"
    return f"write its keys below `{last}:`, indented"


def _number_hint(wanted: str, last: str, text: str, node: Node) -> str:
    digits = text.strip().replace("_", "").replace(",", "").replace(" ", "")
    if isinstance(node.value, str) and digits.lstrip("-").isdecimal():
        return f"write `{last}: {show(digits)}`, without quotes or separators"
    if digits[:-1].isdecimal() and digits[-1:].lower() == "k":
        return f"write `{last}: {int(digits[:-1][:9]) * 1024}`"
    if isinstance(node.value, float) and node.value.is_integer():
        return f"write `{last}: {int(node.value)}`"
    example = "0.5" if wanted == "a number" else "64"
    return f"write digits, such as `{last}: {example}`"
