"""Printing: data to standard output, everything else to standard error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from lmi_build.errors import LmiBuildError, Problem, RecipeInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.cli.options import State


def say(state: State, text: str) -> None:
    """A line for people, unless they asked for quiet."""
    if not state.quiet:
        click.echo(text, err=True)


def data(document: Any) -> None:
    """A JSON document for programs."""
    click.echo(json.dumps(document, indent=1, ensure_ascii=False))


def data_line(document: Any) -> None:
    """One line of a JSON stream."""
    click.echo(json.dumps(document, ensure_ascii=False))


def style(state: State, text: str, **how: Any) -> str:
    """Coloured text where colour is wanted."""
    return click.style(text, **how) if state.color else text


def show_error(error: LmiBuildError, state: State) -> None:
    """Print an error for people, and as data where data was asked for."""
    if state.debug:
        import traceback

        traceback.print_exception(error)
    click.echo(error_text(error, color=state.color), err=True)
    if state.output == "json":
        data({"error": error_document(error)})
    elif state.output == "jsonl":
        data_line({"event": "error", **error_document(error)})


def error_text(error: LmiBuildError, *, color: bool) -> str:
    """An error as people read it: what, where, how to fix."""
    if isinstance(error, RecipeInvalid):
        from lmi_build.recipe.render import render_problems

        return render_problems(error.problems, color=color)
    head = click.style(f"error[{error.code}]", fg="red", bold=True)
    lines = [f"{head if color else f'error[{error.code}]'}: {error.message}"]
    lines += [f"hint: {hint}" for hint in dict.fromkeys(error.hints)]
    return "\n".join(lines)


def error_document(error: LmiBuildError) -> dict[str, Any]:
    """An error as programs read it."""
    problems: Sequence[Problem] = ()
    if isinstance(error, RecipeInvalid):
        problems = error.problems
    return {
        "code": error.code,
        "message": error.message,
        "hints": list(error.hints),
        "exit_code": error.exit_code,
        "problems": [problem_document(problem) for problem in problems],
    }


def problem_document(problem: Problem) -> dict[str, Any]:
    """One problem as programs read it."""
    span = problem.span
    return {
        "code": problem.code,
        "message": problem.message,
        "path": problem.path,
        "hint": problem.hint,
        "file": span.file if span else None,
        "line": span.line if span else None,
        "column": span.column if span else None,
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table; columns that hold numbers in every row stand to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    right = [all(row[i][:1].isdigit() for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), line(["-" * w for w in widths]), *map(line, rows)])
