"""Credentials found in a recipe: refused, and never shown."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.errors import Problem, Span
from lmi_build.recipe.edit import get
from lmi_build.recipe.nodes import Node, walk
from lmi_build.recipe.words import show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SECRET_WORDS = frozenset(
    {
        "TOKEN",
        "SECRET",
        "SECRETS",
        "PASSWORD",
        "PASSWD",
        "PASSPHRASE",
        "PASS",
        "PWD",
        "CREDENTIAL",
        "CREDENTIALS",
        "APIKEY",
    }
)
_SECRET_PAIRS = ("API_KEY", "ACCESS_KEY", "PRIVATE_KEY", "AUTH_KEY", "SIGNING_KEY")
# Words behind which a name only points at a secret, or counts tokens.
_HARMLESS_ENDS = frozenset(
    {"ARN", "NAME", "FILE", "PATH", "DIR", "ID", "IDS", "LEN", "LIMIT", "COUNT", "URL"}
)
_SECRET_VALUES = re.compile(
    r"hf_[A-Za-z0-9]{30,}|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])"
    r"|gh[pousr]_[A-Za-z0-9]{36,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_HINT = (
    "remove it, and renew it if the file was shared; secrets reach an endpoint by "
    "reference, from AWS Secrets Manager"
)
_Rows = dict[tuple[str, int], str]


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name usually holds a secret."""
    words = name.upper().split("_")
    if words[-1] in _HARMLESS_ENDS and "ACCESS_KEY_ID" not in name.upper():
        return False
    return bool(_SECRET_WORDS & set(words)) or any(
        pair in name.upper() for pair in _SECRET_PAIRS
    )


def is_secret_value(text: str) -> bool:
    """Whether text has the form of a well-known credential."""
    return _SECRET_VALUES.search(text) is not None


def mark_secrets(root: Node) -> _Rows:
    """
    Give every secret its fault, and mask its line.

    Returns:
        File and line to the text that may be shown instead.
    """
    rows: _Rows = {}
    environment = get(root, ("serve", "environment"))
    if environment and isinstance(environment.value, dict):
        for name, node in environment.value.items():
            if is_secret_name(name):
                what = (
                    f"the variable `{show(name)}` would put a secret into the artifact"
                )
                _mark(node, what, node.key_span or node.span, rows)
    for _, node in walk(root):
        if isinstance(node.value, str) and is_secret_value(node.text):
            _mark(node, "this text is a credential", node.span, rows)
    return rows


def _mark(node: Node, message: str, place: Span, rows: _Rows) -> None:
    node.fault = Problem(code="recipe.secret", message=message, hint=_HINT, span=place)
    span = node.span
    row = rows.get((span.file, span.line), span.source)
    start = span.column - 1
    masked = row[:start] + "*" * span.length + row[start + span.length :]
    rows[span.file, span.line] = masked


def hide(
    problems: Iterable[Problem], rows: Mapping[tuple[str, int], str]
) -> list[Problem]:
    """Show masked lines in place of those that hold a secret."""
    shown = []
    for problem in problems:
        span = problem.span
        row = rows.get((span.file, span.line)) if span else None
        if span and row is not None:
            problem = replace(problem, span=replace(span, source=row))  # noqa: PLW2901
        shown.append(problem)
    return shown
