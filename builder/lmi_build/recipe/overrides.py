"""`--set a.b=c`: one value of the recipe, said on the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.errors import Problem, RecipeInvalid, Span
from lmi_build.recipe.edit import put, split_path
from lmi_build.recipe.nodes import Node, compose
from lmi_build.recipe.source import Source, source_from_text
from lmi_build.recipe.words import show

if TYPE_CHECKING:
    from collections.abc import Sequence

_FILE = "--set"


@dataclass(frozen=True, kw_only=True, slots=True)
class Overridden:
    """
    A tree after the overrides.

    Args:
        root: The new tree.
        paths: What was set.
        problems: What is wrong with the overrides themselves.
    """

    root: Node
    paths: frozenset[str]
    problems: tuple[Problem, ...]


def apply_overrides(root: Node, overrides: Sequence[str]) -> Overridden:
    """
    Set values in order; a later override of the same path wins.

    Args:
        root: The recipe's tree; it stays as it is.
        overrides: Arguments of `--set`, `a.b=c`, where `c` is a YAML value.
    """
    paths: set[str] = set()
    problems: list[Problem] = []
    for index, text in enumerate(overrides, start=1):
        try:
            path, node = _parse(text, index)
        except RecipeInvalid as error:
            problems.extend(error.problems)
            continue
        changed = put(root, split_path(path), node)
        if changed is None:
            parent = path.rpartition(".")[0]
            problems.append(
                _problem(
                    "recipe.override-path",
                    f"`{show(path)}` cannot be set: `{show(parent)}` has no keys",
                    "set the path of a section's key, such as `bounds.max_input_len`",
                    _span(text, index, 0, len(path)),
                )
            )
        else:
            root = changed
            paths.add(path)
    return Overridden(root=root, paths=frozenset(paths), problems=tuple(problems))


def _parse(text: str, index: int) -> tuple[str, Node]:
    path, equals, value = text.partition("=")
    whole = _span(text, index, 0, len(text))
    if not equals or not path.strip() or "\n" in text or "\r" in text:
        raise RecipeInvalid(
            (
                _problem(
                    "recipe.override-form",
                    f"`{show(text)}` is not `path=value`",
                    "write it as `--set bounds.max_batch_size=8`",
                    whole,
                ),
            )
        )
    path = path.strip()
    _check_path(path, _span(text, index, 0, len(path)))
    offset = text.index("=") + 1
    if value.strip() and not value.lstrip().startswith("#"):
        source = source_from_text(_FILE, text, first_line=index)
        source = replace(source, text=" " * offset + value)
        composed = compose(source)
        if composed.problems:
            raise RecipeInvalid(
                tuple(replace(problem, path=path) for problem in composed.problems)
            )
        node = composed.root
    else:
        node = Node(None, _span(text, index, offset - 1, 1))
    return path, replace(node, key_span=_span(text, index, 0, len(path)))


def _check_path(path: str, span: Span) -> None:
    if path.partition(".")[0] == "matrix":
        raise RecipeInvalid(
            (
                _problem(
                    "recipe.override-path",
                    "a matrix cannot be set on the command line",
                    "set the path itself, such as `--set quantize.method=gptq`; "
                    "the matrix then keeps to that value",
                    span,
                ),
            )
        )
    if "[" in path or not all(path.split(".")):
        raise RecipeInvalid(
            (
                _problem(
                    "recipe.override-path",
                    f"`{show(path)}` is no dotted path",
                    "set a whole list, such as `--set 'verify.prompts=[one, two]'`"
                    if "[" in path
                    else "write keys with single dots between them",
                    span,
                ),
            )
        )


def _span(text: str, index: int, column: int, length: int) -> Span:
    row = "".join(c if c.isprintable() else "?" for c in text)
    source = Source(file=_FILE, text=text, lines=[row], first_line=index)
    return source.span(0, column, length)


def _problem(code: str, message: str, hint: str, span: Span) -> Problem:
    return Problem(code=code, message=message, hint=hint, span=span)
