"""
How the front end reads `serving.properties`: the rules of `java.util.Properties`.

Artifacts that others built may use what this project never writes: `:` and white
space as separators, `!` comments, escapes, and lines that continue.

Source: the class documentation of `java.util.Properties`, method `load`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BLANKS = " \t\f"
_LETTERS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_END = re.compile(r"\r\n|\r|\n")
_UNICODE_DIGITS = 4
_ENVIRONMENT_PREFIX = "OPTION_"


def java_properties(data: bytes) -> dict[str, str]:
    r"""
    Every entry of a file; of a name that stands twice, the last.

    Args:
        data: The file's bytes, ISO 8859-1.

    Raises:
        ValueError: A `\u` without four hexadecimal digits, which ends the reading in
            Java as well.
    """
    entries: dict[str, str] = {}
    for line in _logical_lines(data.decode("latin-1")):
        key, value = _split(line)
        entries[_unescape(key)] = _unescape(value)
    return entries


def with_environment(
    entries: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, str]:
    """
    The entries together with those that the container's environment adds.

    A name in the file wins over the same name in the environment.

    Args:
        entries: What the file says.
        environment: Variables of the container; only `OPTION_*` count here.

    Source: djl-serving `ModelInfo.loadServingProperties`.
    """
    merged = dict(entries)
    for variable, value in environment.items():
        if not variable.startswith(_ENVIRONMENT_PREFIX) or not value:
            continue
        name = variable.removeprefix(_ENVIRONMENT_PREFIX)
        # Mixed case is kept, so that `OPTION_entryPoint` works as well.
        name = name.lower() if re.fullmatch(r"[A-Z0-9_]+", name) else name
        if name == "engine":
            merged.setdefault("engine", value)
        else:
            key = "entryPoint" if name == "entrypoint" else name
            merged.setdefault(f"option.{key}", value)
    return merged


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments and blank ones, with continued lines joined."""
    joined, open_end = "", False
    lines = _END.split(text)
    for raw in lines[:-1]:
        line = raw.lstrip(_BLANKS)
        # Only backslashes before it, and a line still counts as the first.
        if not joined and (not line or line[0] in "#!"):
            open_end = False
            continue
        open_end = _continues(line)
        if open_end:
            joined += line[:-1]
            continue
        yield joined + line
        joined = ""
    last = lines[-1].lstrip(_BLANKS)
    ended = open_end and not lines[-1] and not text.endswith("\r\n")
    if joined or ended or (last and last[0] not in "#!"):
        # A backslash that ends the file continues nothing, and is dropped.
        yield joined + (last[:-1] if _continues(last) else last)


def _continues(line: str) -> bool:
    """Whether an odd number of backslashes ends the line."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _split(line: str) -> tuple[str, str]:
    """Name and value at the first separator that is not escaped."""
    index = 0
    while index < len(line) and line[index] not in "=:" + _BLANKS:
        index += 2 if line[index] == "\\" else 1
    key, rest = line[:index], line[index:].lstrip(_BLANKS)
    if rest[:1] in {"=", ":"}:
        rest = rest[1:].lstrip(_BLANKS)
    return key, rest


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    found: list[str] = []
    index = 0
    while index < len(text):
        char = text[index]
        index += 1
        if char != "\\":
            found.append(char)
            continue
        letter = text[index : index + 1]
        index += 1
        if letter == "u":
            digits = text[index : index + _UNICODE_DIGITS]
            if not re.fullmatch(r"[0-9a-fA-F]{4}", digits):
                raise ValueError(f"\\u{digits} has no four hexadecimal digits")
            found.append(chr(int(digits, 16)))
            index += _UNICODE_DIGITS
        else:
            found.append(_LETTERS.get(letter, letter))
    return "".join(found)
