"""The bytes of a recipe file, read and checked before any YAML is parsed."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from lmi_build.errors import Problem, RecipeInvalid, Span
from lmi_build.recipe.words import printable

if TYPE_CHECKING:
    from pathlib import Path

# A recipe is a page of text; ten thousand times that is somebody's mistake.
MAX_FILE_BYTES = 1 << 20

# Control characters, and the three that only some parsers take for an end of line.
_REFUSED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]"
)
_LINE_END = re.compile(r"\r\n|\r|\n")
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")


@dataclass(slots=True)
class Source:
    """
    A text with a name, which knows its lines.

    Args:
        file: Name shown in messages.
        text: The whole text.
        lines: Its lines without their ends; logins in URLs are masked.
        first_line: Number of the first line, from 1; of an override, which it is.
    """

    file: str
    text: str
    lines: list[str]
    first_line: int = 1

    def span(self, line: int, column: int, length: int = 1) -> Span:
        """
        Make a place; line and column count from zero here, as YAML marks do.

        A place behind the last line is moved to the end of the last line.
        """
        if line >= len(self.lines):
            line = len(self.lines) - 1
            column = len(self.lines[line])
        row = self.lines[line]
        length = max(1, min(length, len(row) - column))
        return Span(
            file=self.file,
            line=line + self.first_line,
            column=column + 1,
            length=length,
            source=row,
        )


def source_from_text(file: str, text: str, *, first_line: int = 1) -> Source:
    """
    Split a text into lines.

    Raises:
        RecipeInvalid: It holds a character that no recipe needs.
    """
    shown = _URL_LOGIN.sub(lambda match: "*" * len(match.group()), text)
    lines = _LINE_END.split(shown)
    source = Source(file=file, text=text, lines=lines, first_line=first_line)
    match = _REFUSED.search(text)
    if match:
        _refuse_character(source, match.start(), match.group())
    return source


def display_path(path: Path) -> str:
    """The path as the user gave it, printable whatever bytes it has."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return printable(text)


def read_source(path: Path) -> Source:
    """
    Read a recipe file.

    Raises:
        RecipeInvalid: It is missing, unreadable, too large or not UTF-8 text.
    """
    file = display_path(path)
    data = _read_bytes(path, file)
    if not data.strip():
        _refuse(
            file,
            "recipe.empty",
            "the recipe is empty",
            f"write a starting point with `lmi-build init {file}`",
        )
    return source_from_text(file, _decode(data, file))


def _read_bytes(path: Path, file: str) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            _refuse(
                file,
                "recipe.is-directory",
                f"`{file}` is a directory, not a recipe",
                f"name a file in it, such as `{file.rstrip('/')}/recipe.yaml`",
            )
        if not stat.S_ISREG(mode):
            _refuse(
                file,
                "recipe.not-a-file",
                f"`{file}` is a device, pipe or socket, not a file",
                "write the recipe to a file first",
            )
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # ValueError: a NUL in the path, which no file name has.
        _refuse(
            file,
            "recipe.not-found",
            f"there is no file `{file}`",
            f"check the path, or write one with `lmi-build init {file}`",
        )
    except OSError as error:
        _refuse(
            file,
            "recipe.unreadable",
            f"cannot read `{file}`: {error.strerror}",
            "check the path and its permissions",
        )
    if len(data) > MAX_FILE_BYTES:
        _refuse(
            file,
            "recipe.too-large",
            f"the recipe has more than {MAX_FILE_BYTES} bytes",
            "check that this is the right file; a recipe is a page of text",
        )
    return data


def _decode(data: bytes, file: str) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        _refuse(
            file,
            "recipe.byte-order-mark",
            "the file starts with a byte order mark",
            "save it as UTF-8 without a byte order mark",
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        row = _LINE_END.split(before)
        tail = data[error.start :].split(b"\n")[0].decode("utf-8", "replace")
        line = row[-1] + "".join(c if c.isprintable() else "?" for c in tail.rstrip())
        span = Span(
            file=file, line=len(row), column=len(row[-1]) + 1, source=line, length=1
        )
        _refuse(
            file,
            "recipe.encoding",
            f"byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8",
            "save the file as UTF-8",
            span=span,
        )


def _refuse_character(source: Source, offset: int, character: str) -> NoReturn:
    before = _LINE_END.split(source.text[:offset])
    _refuse(
        source.file,
        "recipe.control-character",
        f"the character U+{ord(character):04X} cannot stand in a recipe",
        "remove it",
        span=source.span(len(before) - 1, len(before[-1])),
    )


def _refuse(
    file: str, code: str, message: str, hint: str, *, span: Span | None = None
) -> NoReturn:
    span = span or Span(file=file, line=1, column=1)
    raise RecipeInvalid((Problem(code=code, message=message, hint=hint, span=span),))
