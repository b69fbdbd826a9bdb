"""
YAML events composed into nodes that remember their places.

Only the parser of ruamel.yaml is used: its events carry marks, and nothing is ever
constructed from a tag. Aliases are refused rather than expanded: one value then
has one place, and a bomb has nothing to grow from; a `matrix` covers what they are
used for in recipes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from lmi_build.errors import Problem, RecipeInvalid, Span
from lmi_build.recipe.scalars import Scalar, resolve
from lmi_build.recipe.words import child_path, printable, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.digest import JSONValue
    from lmi_build.recipe.source import Source

MAX_DEPTH = 32
MAX_NODES = 20_000

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_SURROGATES = re.compile("[\ud800-\udfff]")

Value: TypeAlias = "dict[str, Node] | list[Node] | Scalar"


@dataclass(slots=True)
class Node:
    """
    One value of the text.

    Args:
        value: A mapping or list of nodes, or a scalar.
        span: Where the value stands.
        key_span: Where its key stands, for values of a mapping.
        text: The scalar as written, without quotes; empty for collections.
        fault: What is wrong with its spelling, if anything; the path is not set.
    """

    value: Value
    span: Span
    key_span: Span | None = None
    text: str = ""
    fault: Problem | None = None

    @property
    def place(self) -> Span:
        """The key of a collection, the value of a scalar: what a message points at."""
        if self.key_span and isinstance(self.value, dict | list):
            return self.key_span
        return self.span


@dataclass(slots=True)
class Composed:
    """
    A whole text.

    Args:
        root: Its only document.
        problems: What is wrong with the YAML, in no order; paths may be empty.
        broken: Whether values are missing because of it (anchors, merge keys), so
            that a further check would report what is not wrong.
    """

    root: Node
    problems: list[Problem] = field(default_factory=list)
    broken: bool = False


def plain(node: Node) -> JSONValue:
    """The node's value without places."""
    if isinstance(node.value, dict):
        return {name: plain(item) for name, item in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every node with its dotted path, parents first."""
    yield path, node
    if isinstance(node.value, dict):
        for name, item in node.value.items():
            yield from walk(item, child_path(path, name))
    elif isinstance(node.value, list):
        for index, item in enumerate(node.value):
            yield from walk(item, f"{path}[{index}]")


def compose(source: Source) -> Composed:
    """
    Read a text that holds one YAML document.

    Raises:
        RecipeInvalid: It is no YAML, or too deep, or too much.
    """
    composer = _Composer(source)
    try:
        return composer.run()
    except MarkedYAMLError as error:
        raise RecipeInvalid((_syntax_problem(source, error),)) from error
    except (YAMLError, ValueError, OverflowError) as error:
        # ruamel.yaml lets chr() fail on escapes such as "\UFFFFFFFF".
        what = (
            show(str(error).partition("\n")[0])
            if isinstance(error, YAMLError)
            else "an escape near here names no character"
        )
        problem = Problem(
            code="recipe.syntax",
            message=f"this is not YAML: {what}",
            hint="check the escapes in double-quoted text",
            span=composer.last,
        )
        raise RecipeInvalid((problem,)) from error


class _Composer:
    """One pass over the events of one text."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.broken = False
        self.anchored = False
        self.num_nodes = 0
        self.last = source.span(0, 0)
        # Starting `%YAML 1.1` would change how the scanner reads; it is refused.
        self.events: Iterator[Any] = YAML(typ="safe", pure=True).parse(source.text)

    def run(self) -> Composed:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                if root is not None:
                    self._fatal(
                        event,
                        "recipe.many-documents",
                        "a recipe file holds one document",
                        "remove the `---`, or put the second document into its "
                        "own file",
                    )
                if event.version or event.tags:
                    self._fatal(
                        event,
                        "recipe.directive",
                        "YAML directives are not part of a recipe",
                        "remove the line that starts with `%`",
                    )
                root = self._node(next(self.events), "", 0)
        if root is None or (root.value is None and not root.text):
            self._fatal_at(
                self.source.span(0, 0),
                "recipe.empty",
                "the recipe is empty",
                f"write a starting point with `lmi-build init {self.source.file}`",
            )
        return Composed(root, self.problems, self.broken)

    def _node(self, event: Any, path: str, depth: int) -> Node:
        self.num_nodes += 1
        self.last = span = self._span(event)
        if depth > MAX_DEPTH:
            self._fatal(
                event,
                "recipe.too-deep",
                f"values are nested more than {MAX_DEPTH} deep",
                "a recipe needs four levels; remove the extra brackets",
            )
        if self.num_nodes > MAX_NODES:
            self._fatal(
                event,
                "recipe.too-many-values",
                f"the recipe has more than {MAX_NODES} values",
                "check that this is the right file",
            )
        self._refuse_anchor(event, path, span)
        if isinstance(event, AliasEvent):
            return Node(None, span)
        if isinstance(event, MappingStartEvent):
            node = self._mapping(event, path, depth)
        elif isinstance(event, SequenceStartEvent):
            node = self._sequence(event, path, depth)
        else:
            node = self._scalar(event)
        if event.tag is not None:
            node.fault = Problem(
                code="recipe.tag",
                message=f"the tag `{_tag(event)}` is not part of a recipe",
                hint="remove it; values are plain text, numbers, `true` or `false`",
                span=span,
            )
        return node

    def _refuse_anchor(self, event: Any, path: str, span: Span) -> None:
        if event.anchor is None:
            return
        self.broken = True
        if not self.anchored:
            self._problem(
                "recipe.anchor",
                f"the anchor or alias `{show(str(event.anchor))}` is not part of a "
                "recipe",
                "write the value out, or make variants with `matrix`",
                span,
                path,
            )
        self.anchored = True

    def _scalar(self, event: ScalarEvent) -> Node:
        span = self._span(event)
        text = _joined(event.value)
        match = _UNPRINTABLE.search(text)
        if match:
            refused = Problem(
                code="recipe.control-character",
                message=f"the text holds the character U+{ord(match.group()):04X}",
                hint="remove the escape that makes it",
                span=span,
            )
            return Node("", span, text=show(text), fault=refused)
        if event.style:
            return Node(text, span, text=text)
        found = resolve(text)
        fault: Problem | None = None
        if found.code:
            fault = Problem(
                code=found.code, message=found.message, hint=found.hint, span=span
            )
        return Node(found.value, span, text=text, fault=fault)

    def _sequence(self, start: Any, path: str, depth: int) -> Node:
        items: list[Node] = []
        event = next(self.events)
        while not isinstance(event, SequenceEndEvent):
            items.append(self._node(event, f"{path}[{len(items)}]", depth + 1))
            event = next(self.events)
        return Node(items, self._span(start, event))

    def _mapping(self, start: Any, path: str, depth: int) -> Node:
        items: dict[str, Node] = {}
        event = next(self.events)
        while not isinstance(event, MappingEndEvent):
            key = self._key(event, path, depth)
            name = key.value if isinstance(key.value, str) else ""
            node = self._node(next(self.events), child_path(path, name), depth + 1)
            node.key_span = key.span
            if key.value == "<<" and key.text:
                self.broken = True
                self._problem(
                    "recipe.merge-key",
                    "merge keys (`<<`) are not part of a recipe",
                    "write the keys out, or make variants with `matrix`",
                    key.span,
                    path,
                )
            elif not isinstance(key.value, str):
                self._problem(
                    "recipe.key-type",
                    f"a key must be text, not {_kind(key)}",
                    f'quote it: `"{show(key.text)}"`' if key.text else "name the key",
                    key.span,
                    path,
                )
            elif name in items:
                self._duplicate(name, items[name], key.span, child_path(path, name))
            else:
                items[name] = node
            event = next(self.events)
        return Node(items, self._span(start, event))

    def _key(self, event: Any, path: str, depth: int) -> Node:
        node = self._node(event, path, depth + 1)
        if node.fault is not None:
            self.problems.append(node.fault)
        return node

    def _duplicate(self, name: str, first: Node, span: Span, path: str) -> None:
        old = first.key_span or first.span
        self._problem(
            "recipe.duplicate-key",
            f"the key `{show(name)}` stands here and at {old.line}:{old.column}",
            f"keep one of lines {old.line} and {span.line}"
            if old.line != span.line
            else "keep one of them",
            span,
            path,
        )

    def _span(self, event: Any, end: Any = None) -> Span:
        first, last = event.start_mark, (end or event).end_mark
        column = first.column
        if first.line == last.line:
            length = last.column - column
        else:
            length = len(self.source.lines[min(first.line, len(self.source.lines) - 1)])
            length = length - column
        anchored = getattr(event, "anchor", None) is not None
        if anchored and isinstance(event, ScalarEvent):
            length = len(str(event.anchor)) + 1
        return self.source.span(first.line, column, length)

    def _problem(
        self, code: str, message: str, hint: str, span: Span, path: str
    ) -> None:
        self.problems.append(
            Problem(code=code, message=message, path=path, hint=hint, span=span)
        )

    def _fatal(self, event: Any, code: str, message: str, hint: str) -> NoReturn:
        self._fatal_at(self._span(event), code, message, hint)

    def _fatal_at(self, span: Span, code: str, message: str, hint: str) -> NoReturn:
        problem = Problem(code=code, message=message, hint=hint, span=span)
        raise RecipeInvalid((*self.problems, problem))


def _tag(event: Any) -> str:
    """The tag as it is written: `!!int` for the long name it stands for."""
    return show(str(event.tag).replace("tag:yaml.org,2002:", "!!"))


def _joined(text: str) -> str:
    """JSON writes one character beyond U+FFFF as two escapes; make it one again."""
    if not _SURROGATES.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _kind(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list"
    return "empty" if node.value is None else f"`{show(node.text)}`"


def _syntax_problem(source: Source, error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    span = source.span(line, column)
    indent = span.source[: len(span.source) - len(span.source.lstrip())]
    if "\t" in indent:
        return Problem(
            code="recipe.tab",
            message="a tab cannot indent YAML",
            hint="indent with spaces",
            span=source.span(span.line - 1, indent.index("\t")),
        )
    what = printable(str(error.problem or "cannot go on here"))
    context = printable(f" {error.context}" if error.context else "")
    return Problem(
        code="recipe.syntax",
        message=f"this is not YAML: {what}{context}",
        hint=_syntax_hint(what),
        span=span,
    )


def _syntax_hint(problem: str) -> str:
    if "mapping values" in problem:
        return "quote text that contains `: `, and indent every key of a section alike"
    if "escape character" in problem:
        return "write `\\\\` for a backslash, or use single quotes"
    if "cannot start any token" in problem:
        return "quote text that starts with this character"
    if "expected ',' or" in problem or "found unexpected end" in problem:
        return "close the bracket or quote that was opened before"
    return "indent every key of a section alike, with spaces, and close every bracket"
