"""Credentials found in a recipe: refused, and never shown."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.errors import Problem, Span
from lmi_build.recipe.edit import get
from lmi_build.recipe.job_forms import is_reference
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
_BY_VALUE = "recipe.job-secret"
_HINTS = {
    _BY_VALUE: "keep it in AWS Secrets Manager and write `secretsmanager:NAME#KEY`, or"
    " in the Parameter Store and write `ssm:/NAME`; renew it if the file was shared",
}
# Where the variables of a section end up.
_PLACES = {"serve": "the artifact", "job": "the request of every job"}
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
    for section, place in _PLACES.items():
        for name, node in _entries(root, section, "environment"):
            if is_secret_name(name):
                what = f"the variable `{show(name)}` would put a secret into {place}"
                _mark(node, what, node.key_span or node.span, rows)
    for name, node in _entries(root, "job", "secrets"):
        if isinstance(node.value, str) and not is_reference(node.value):
            what = f"`job.secrets.{show(name)}` is a value, not where one is kept"
            _mark(node, what, node.span, rows, code=_BY_VALUE)
    for _, node in walk(root):
        if isinstance(node.value, str) and is_secret_value(node.text):
            _mark(node, "this text is a credential", node.span, rows)
    return rows


def _entries(root: Node, *path: str) -> list[tuple[str, Node]]:
    """The names and values of a mapping; none where there is no mapping."""
    found = get(root, path)
    if found is None or not isinstance(found.value, dict):
        return []
    return list(found.value.items())


def _mark(
    node: Node, message: str, place: Span, rows: _Rows, *, code: str = "recipe.secret"
) -> None:
    hint = _HINTS.get(code, _HINT)
    node.fault = Problem(code=code, message=message, hint=hint, span=place)
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
