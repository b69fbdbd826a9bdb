"""Problems drawn for people: the place, the line, a caret, the way out."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.errors import Problem, Span

_RED, _BLUE, _GREEN, _BOLD, _RESET = (
    "\x1b[1;31m",
    "\x1b[1;34m",
    "\x1b[1;32m",
    "\x1b[1m",
    "\x1b[0m",
)
# What fits beside a line number on a terminal of 100 columns.
_MAX_COLUMNS = 88
# Text kept before the caret when a long line is cut.
_CONTEXT_COLUMNS = 24


def render_problems(problems: Sequence[Problem], *, color: bool) -> str:
    """
    Draw problems below each other; a hint that repeats is drawn once.

    Args:
        problems: In the order to show.
        color: Whether to decorate with ANSI sequences; the words are the same.

    Returns:
        Text that ends with a newline, or nothing for no problems.
    """
    seen: set[str] = set()
    blocks: list[str] = []
    for problem in problems:
        hint = "" if problem.hint in seen else problem.hint
        seen.add(problem.hint)
        blocks.append("\n".join(_block(problem, hint, color=color)))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _block(problem: Problem, hint: str, *, color: bool) -> list[str]:
    def paint(code: str, text: str) -> str:
        return f"{code}{text}{_RESET}" if color else text

    head = paint(_RED, f"error[{problem.code}]")
    lines = [f"{head}: {paint(_BOLD, problem.message)}"]
    span = problem.span
    if span:
        where = f"{span.file}:{span.line}:{span.column}"
        path = f"  {problem.path}" if problem.path else ""
        lines.append(f"{paint(_BLUE, '  -->')} {where}{path}")
        if span.source.strip():
            lines += _excerpt(span, paint(_BLUE, "|"), color=color)
    elif problem.path:
        lines.append(f"{paint(_BLUE, '  -->')} {problem.path}")
    if hint:
        lines.append(f"{paint(_GREEN, 'hint')}: {hint}")
    return lines


def _excerpt(span: Span, bar: str, *, color: bool) -> list[str]:
    number = str(span.line)
    margin = " " * max(2, len(number))
    row, start = span.source, span.column - 1
    before, after = "", ""
    if len(row) > _MAX_COLUMNS:
        first = max(0, start - _CONTEXT_COLUMNS)
        before = "..." if first else ""
        after = "..." if len(row) > first + _MAX_COLUMNS else ""
        row, start = row[first : first + _MAX_COLUMNS], start - first
    length = max(1, min(span.length, len(row) - start))
    row = "".join(c if c.isprintable() or c == "\t" else "?" for c in row)
    gap = " " * len(before) + _blank(row[:start])
    caret = "^" * max(1, _width(row[start : start + length]))
    if color:
        caret = f"{_RED}{caret}{_RESET}"
    return [
        f"{margin} {bar}",
        f"{number:>{len(margin)}} {bar} {before}{row}{after}",
        f"{margin} {bar} {gap}{caret}",
    ]


def _blank(text: str) -> str:
    """White space as wide as the text; tabs stay, for the terminal to expand."""
    return "".join("\t" if c == "\t" else " " * _width(c) for c in text)


def _width(text: str) -> int:
    """Columns of a terminal: wide characters take two, combining ones none."""
    return sum(
        0
        if unicodedata.combining(c)
        else 2
        if unicodedata.east_asian_width(c) in {"W", "F"}
        else 1
        for c in text
    )
