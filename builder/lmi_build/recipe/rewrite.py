"""Numbers put into the text of a recipe; everything else stays byte for byte."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

from lmi_build.errors import Problem, RecipeInvalid
from lmi_build.recipe.edit import get
from lmi_build.recipe.nodes import compose, plain
from lmi_build.recipe.source import source_from_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.errors import Span
    from lmi_build.recipe.nodes import Node

_LINE_END = re.compile(r"\r\n|\r|\n")


def set_numbers(text: str, file: str, section: str, numbers: Mapping[str, int]) -> str:
    """
    A recipe's text with some numbers of one section replaced or added.

    Args:
        text: The recipe.
        file: Its name, for messages.
        section: A top-level section, such as `bounds`.
        numbers: Key to value.

    Returns:
        The new text: comments, order, quotes and line ends are as they were.

    Raises:
        RecipeInvalid: The text is no recipe, or the section cannot be edited.
    """
    before = compose(source_from_text(file, text)).root
    new = text
    # One at a time: each edit moves the places behind it.
    for key, number in numbers.items():
        new = _set_one(new, file, section, key, number)
    after = plain(compose(source_from_text(file, new)).root)
    expected = plain(before)
    if isinstance(expected, dict):
        old = expected.get(section)
        kept = old if isinstance(old, dict) else {}
        expected = {**expected, section: {**kept, **numbers}}
    if after != expected:
        raise _cannot(file, section, before)
    return new


def _set_one(text: str, file: str, section: str, key: str, number: int) -> str:
    source = source_from_text(file, text)
    root = compose(source).root
    node = get(root, [section])
    if node is None:
        end = "" if text.endswith("\n") else "\n"
        return f"{text}{end}{section}:\n  {key}: {number}\n"
    found = get(root, [section, key])
    if found is not None:
        if isinstance(found.value, (dict, list)) or not found.text:
            raise _cannot(file, section, root)
        start = _offset(text, found.span)
        return text[:start] + str(number) + text[start + found.span.length :]
    if not isinstance(node.value, dict) or not node.value:
        raise _cannot(file, section, root)
    return _add(text, file, root, section, f"{key}: {number}")


def _add(text: str, file: str, root: Node, section: str, entry: str) -> str:
    """Add an entry behind the last one of a section, in its style."""
    node = get(root, [section])
    assert node is not None  # noqa: S101 - the caller looked
    assert isinstance(node.value, dict)  # noqa: S101 - the caller looked
    last = list(node.value.values())[-1]
    if isinstance(last.value, (dict, list)) or last.key_span is None:
        raise _cannot(file, section, root)
    end = _offset(text, last.span) + last.span.length
    if text[_offset(text, node.span)] == "{":
        return f"{text[:end]}, {entry}{text[end:]}"
    indent = " " * (last.key_span.column - 1)
    line_end = _LINE_END.search(text, end)
    usual = _LINE_END.search(text)
    assert usual is not None  # noqa: S101 - the section's key has a line of its own
    if line_end is None:
        return f"{text}{usual.group()}{indent}{entry}{usual.group()}"
    at = line_end.end()
    return f"{text[:at]}{indent}{entry}{line_end.group()}{text[at:]}"


def _offset(text: str, span: Span) -> int:
    """Where a place stands in the text."""
    ends = (match.end() for match in _LINE_END.finditer(text))
    start = next(islice(ends, span.line - 2, None), 0) if span.line > 1 else 0
    return start + span.column - 1


def _cannot(file: str, section: str, root: Node) -> RecipeInvalid:
    node = get(root, [section])
    return RecipeInvalid(
        (
            Problem(
                code="recipe.rewrite",
                message=f"`{section}` of {file} is not written as plain keys and"
                " numbers, so it cannot be changed without changing more",
                path=section,
                hint=f"write `{section}` as a block, one `key: number` in each line",
                span=node.place if node is not None else None,
            ),
        )
    )
