"""Which keys a recipe has, and what to say about one it has not."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel

from lmi_build.errors import Problem, Span
from lmi_build.recipe.methods import METHODS
from lmi_build.recipe.model import RecipeModel
from lmi_build.recipe.spellings import DERIVED, RENAMED, RENAMED_IN
from lmi_build.recipe.words import child_path, nearest, show
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.recipe.section import Section

# Sections whose keys the user makes up.
FREE = (
    "compile.options",
    "serve.options",
    "serve.environment",
    "publish.tags",
    "job.instances",
    "job.images",
    "job.tags",
    "job.environment",
    "job.secrets",
)


def _sections(annotation: object) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation  # type: ignore[misc]  # every model here is a Section
    for item in get_args(annotation):
        yield from _sections(item)


def _collect(model: type[Section], path: str, found: dict[str, list[str]]) -> None:
    keys = found.setdefault(path, [])
    for name, info in model.model_fields.items():
        key = info.alias or name
        if key not in keys:
            keys.append(key)
        for section in _sections(info.annotation):
            _collect(section, f"{path}.{key}" if path else key, found)


def grammar() -> dict[str, list[str]]:
    """Path of each section to its keys, over all methods; `""` is the top level."""
    found: dict[str, list[str]] = {}
    _collect(RecipeModel, "", found)
    found[""].append("matrix")
    return found


def method_keys(method: str) -> list[str]:
    """The keys of `quantize` that a method takes."""
    return list(METHODS[method].model_fields)


def is_known(path: str) -> bool:
    """Whether a dotted path names something that a recipe can set."""
    section, _, key = path.rpartition(".")
    return key in grammar().get(section, ()) or any(
        path.startswith(f"{free}.") for free in FREE
    )


def all_paths() -> list[str]:
    """Every dotted path of the grammar."""
    return [
        f"{section}.{key}" if section else key
        for section, keys in grammar().items()
        for key in keys
    ]


def renamed(section: str, key: str) -> str:
    """Our path for another tool's key; empty where we know no such key."""
    return RENAMED_IN.get(section, RENAMED).get(key) or RENAMED.get(key, "")


def unknown_key(section: str, key: str, method: str, span: Span | None) -> Problem:
    """
    Explain a key that its section does not have.

    Args:
        section: Dotted path of the section; empty at the top.
        key: What was written.
        method: The recipe's quantization method, if it is a known one.
        span: Where the key stands.
    """
    path = child_path(section, key)
    known = grammar()
    if section == "quantize" and method:
        if key in known[section]:
            return _unused_option(path, key, method, span)
        known = {**known, section: method_keys(method)}
    code, message, hint = _explain(section, key, known)
    return Problem(code=code, message=message, path=path, hint=hint, span=span)


def _unused_option(path: str, key: str, method: str, span: Span | None) -> Problem:
    others = [name for name in METHODS if key in method_keys(name)]
    return Problem(
        code="recipe.unused-option",
        message=f"`{key}` means nothing for method `{method}`",
        path=path,
        hint=f"remove it, or choose method {join_words(others)}",
        span=span,
    )


def _explain(
    section: str, key: str, known: dict[str, list[str]]
) -> tuple[str, str, str]:
    shown = show(key)
    keys = known[section]
    if key in DERIVED and section in {"", "bounds", "compile", "serve"}:
        return (
            "recipe.derived-key",
            f"`{key}` is derived, never set",
            "set `bounds.max_input_len` and `bounds.max_output_len`; it is their sum",
        )
    if "." in key and key in all_paths():
        parent, _, last = key.rpartition(".")
        return (
            "recipe.unknown-key",
            f"unknown key `{shown}`: dotted paths are for `--set` and `matrix`",
            f"write `{last}` in section `{parent}`",
        )
    ours = renamed(section, key)
    if ours:
        return (
            "recipe.renamed-key",
            f"`{shown}` is another tool's word",
            _our_word(section, ours, inverted=key == "zero_point"),
        )
    elsewhere = [place for place, names in known.items() if key in names]
    if elsewhere and key != "method":
        where = join_words([f"{place}.{key}" if place else key for place in elsewhere])
        return (
            "recipe.misplaced-key",
            f"`{shown}` does not belong {_inside(section)}",
            f"move it to {where}",
        )
    near = nearest(key, keys)
    if near is None:
        near = nearest(key, all_paths())
    listed = f"known {_inside(section)}: {join_words(keys, last='and')}"
    hint = f"did you mean `{near}`? {listed}" if near else listed
    return "recipe.unknown-key", f"unknown key `{shown}`", hint


def _our_word(section: str, path: str, *, inverted: bool) -> str:
    if inverted:
        return "write `sym: false` in `quantize` for zero points"
    parent, _, key = path.rpartition(".")
    if parent == section:
        return f"write `{key}`"
    return f"write `{path}`" if not parent else f"write `{key}` in section `{parent}`"


def _inside(section: str) -> str:
    return f"in `{section}`" if section else "at the top level"
