r"""
`serving.properties`: written so that both of LMI's readers see the same.

The front end reads the file with `java.util.Properties`; the container's Python
tools cut each line at its first `=` and know no escapes, continuation lines, `:`
separators or `!` comments. A value is therefore written raw or refused: escaping
for one reader would put the escape into the other's value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lmi_build.errors import Problem, VerifyFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

PROPERTIES_NAME = "serving.properties"

# What neither reader treats specially in a key: no separators, no comment marks.
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]*\Z")
# Printable ASCII without the backslash, the one character that Java unescapes.
# Java keeps spaces at the end and drops them at the start; Python drops both.
_VALUE = re.compile(r"([!-\[\]-~]([ -\[\]-~]*[!-\[\]-~])?)?\Z")
# Keys that would make the container look for weights outside the artifact.
_FORBIDDEN_KEYS = frozenset(
    {"option.model_id", "model_id", "option.s3url", "option.model_dir"}
)


def property_problem(key: str, value: str) -> Problem | None:
    """Why an entry cannot be written safely, or None when it can."""
    path = f"serve.properties.{key}"
    if not _KEY.match(key):
        return Problem(
            code="package.unsafe-property",
            message=f"property name {key!r} is not letters, digits, `_`, `.` and `-`",
            path=path,
            hint="rename it; DJL Serving's own names all have this form",
        )
    if key in _FORBIDDEN_KEYS:
        return Problem(
            code="package.forbidden-property",
            message=f"`{key}` would make the container load other weights than these",
            path=path,
            hint=f"remove `{key}`: the artifact holds its own engine",
        )
    if not _VALUE.match(value):
        return Problem(
            code="package.unsafe-property",
            message=f"value {value!r} of `{key}` is read differently by LMI's two"
            " parsers, or not at all",
            path=path,
            hint="use printable ASCII without a backslash or spaces at either end",
        )
    return None


def render_properties(entries: Mapping[str, str]) -> bytes:
    """
    Write the file: `engine` first, then sorted by name, one `key=value` a line.

    Raises:
        ValueError: An entry is not safe; the planner reports it before this.
    """
    for key, value in entries.items():
        problem = property_problem(key, value)
        if problem is not None:
            raise ValueError(problem.message)
    ordered = sorted(entries, key=lambda key: (key != "engine", key))
    return "".join(f"{key}={entries[key]}\n" for key in ordered).encode("ascii")


def parse_properties(data: bytes) -> dict[str, str]:
    """
    Read a file of the unambiguous subset that `render_properties` writes.

    Raises:
        VerifyFailed: `verify.properties-ambiguous` on any line that the two readers
            could take differently, with its number.
    """
    entries: dict[str, str] = {}
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw:
            continue
        line = raw.decode("latin-1")
        key, equals, value = line.partition("=")
        fault = _line_fault(key, equals, value)
        if fault is None and key in entries:
            fault = f"`{key}` stands twice"
        if fault is not None:
            raise VerifyFailed(
                f"{PROPERTIES_NAME} line {number}: {fault}",
                code="verify.properties-ambiguous",
                hints=("keep only `key=value` lines in printable ASCII",),
            )
        entries[key] = value
    return entries


def _line_fault(key: str, equals: str, value: str) -> str | None:
    if not equals:
        return f"{key!r} has no `=`"
    problem = property_problem(key, value)
    return None if problem is None else problem.message
