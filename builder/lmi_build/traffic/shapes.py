"""
Lines of one shape as a regular expression: the fast way through a JSONL log.

A program writes every line alike: the same keys in the same order with the same
spaces. The expression of such a line holds everything but the values literally, and
for each value what JSON allows there, never more. A line that it matches is therefore
JSON with the same keys, and its groups are what a JSON reader would have found; every
other line goes to that reader. Values are matched in ASCII only and numbers up to a
size where no reader refuses them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections import Counter

    from lmi_build.traffic.tally import Columns

# Seven digits at most: `LARGEST_LEN`.
LENGTH = rb"(?:0|[1-9][0-9]{0,6})"
_PLAIN = rb"[ !#-\[\]-~]*"
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_STRING = rb'"' + _PLAIN + rb"(?:" + _ESCAPE + _PLAIN + rb')*"'
_NUMBER = rb"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,2})?"
_WORD = rb"(?:true|false|null)"
# To the second; what follows cannot change it.
ISO_SECOND = rb'"([0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2})'
ISO_REST = rb'(?:\.[0-9]{1,9})?(?:Z|\+00:00)?"'
# Seconds since 1970; with 3, 6 or 9 further digits it is milliseconds and so on.
EPOCHS = (
    rb"(0|[1-9][0-9]{0,9})(?:\.[0-9]{1,30})?",
    rb"([1-9][0-9]{9})[0-9]{3}",
    rb"([1-9][0-9]{9})[0-9]{6}",
    rb"([1-9][0-9]{9})[0-9]{9}",
)
_TOKEN = re.compile(
    rb'(?P<space>[ \t]+)|(?P<string>"(?:[^"\\\x00-\x1f]|\\.)*")'
    rb"|(?P<number>-?[0-9][0-9.eE+-]*)|(?P<word>true|false|null)|(?P<mark>[{}\[\],:])"
)
_MOST_TOKENS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """
    All lines that differ from one line in their values only.

    Args:
        pattern: Matches whole lines with their end. Its groups: the two lengths, or
            one group with both and `between`; then the second of arrival.
        between: What stands between the two lengths; empty where that changes.
        input_first: The prompt's length stands before the answer's.
        timed: There is a group for the arrival.
    """

    pattern: re.Pattern[bytes]
    between: bytes
    input_first: bool
    timed: bool

    def read(
        self, lines: bytes, seconds: Counter[bytes]
    ) -> tuple[list[int], list[int]]:
        """
        Input and output lengths of the lines that match, in their order.

        Args:
            lines: Whole lines with their ends.
            seconds: Texts of seconds of arrival to lines; added to.
        """
        found: list[Any] = self.pattern.findall(lines)
        if not found:
            return [], []
        groups = list(zip(*found, strict=True)) if self.pattern.groups > 1 else [found]
        if self.timed:
            seconds.update(groups.pop(self.pattern.groupindex["time"] - 1))
        if self.between:
            # Many at once: what stands between two lengths is in neither of them, and
            # has no end of a line. JSON's reader is the fastest there is for numbers.
            joined = b"\n,".join(groups[0]).replace(self.between, b",")
            flat = json.loads(b"[%b]" % joined)
            first, second = flat[::2], flat[1::2]
        else:
            first, second = list(map(int, groups[0])), list(map(int, groups[1]))
        return (first, second) if self.input_first else (second, first)


def shape_of(line: bytes, columns: Columns) -> Shape | None:
    """
    The shape of a good line, or None where it has none that is safe.

    Args:
        line: One JSON object without white space around it, with both
            lengths as plain integers.
        columns: Where the lengths and the time stand.
    """
    leaves = _leaves(line)
    if leaves is None:
        return None
    pieces, paths = leaves
    wanted = {columns.input: "input", columns.output: "output"}
    if columns.arrival is not None:
        wanted[columns.arrival] = "time"
    at = {wanted[path]: i for i, path in paths.items() if path in wanted}
    if not {"input", "output"} <= set(at) or ("time" in at) != (
        columns.arrival is not None
    ):
        return None
    if not all(
        re.fullmatch(LENGTH, pieces[at[name]][1]) for name in ("input", "output")
    ):
        return None
    return _compile(pieces, at)


def _compile(pieces: list[tuple[str, bytes]], at: dict[str, int]) -> Shape | None:
    first, second = sorted((at["input"], at["output"]))
    fixed = all(kind == "literal" for kind, _ in pieces[first + 1 : second])
    parts: list[bytes] = []
    for index, (kind, text) in enumerate(pieces):
        if index == at.get("time"):
            part = _time_part(kind, text)
            if part is None:
                return None
        elif index == first:
            part = b"(" + LENGTH + (b"" if fixed else b")")
        elif index == second:
            part = (b"" if fixed else b"(") + LENGTH + b")"
        else:
            part = _VALUES.get(kind) or re.escape(text)
        parts.append(part)
    pattern = re.compile(rb"(?m:^)" + b"".join(parts) + rb"\r?\n")
    if pattern.match(b"".join(text for _, text in pieces) + b"\n") is None:
        return None  # an odd value, such as a huge number
    return Shape(
        pattern=pattern,
        between=b"".join(text for _, text in pieces[first + 1 : second]) * fixed,
        input_first=at["input"] < at["output"],
        timed="time" in at,
    )


_VALUES = {"string": _STRING, "number": _NUMBER, "word": _WORD}


def _time_part(kind: str, text: bytes) -> bytes | None:
    forms = {"string": (ISO_SECOND + ISO_REST,), "number": EPOCHS}
    for form in forms.get(kind, ()):
        if re.fullmatch(form, text):
            return form.replace(b"(", b"(?P<time>", 1)
    return None


def _leaves(
    line: bytes,
) -> tuple[list[tuple[str, bytes]], dict[int, str]] | None:
    """
    A line in pieces, and the dotted path of each value that is in objects only.

    None for what is better left to the JSON reader: not ASCII, a key twice in one
    object, a dot in a key, a very long line.
    """
    try:
        line.decode("ascii")
        json.loads(line, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError):
        return None
    walk = _Walk()
    for match in _TOKEN.finditer(line):
        if len(walk.pieces) > _MOST_TOKENS:
            return None
        walk.take(str(match.lastgroup), match.group())
    if b"".join(text for _, text in walk.pieces) != line:
        return None
    return walk.pieces, walk.paths


class _Walk:
    """A way through the tokens of one JSON line."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, bytes]] = []
        self.paths: dict[int, str] = {}
        self._open: list[bytes] = []
        self._keys: list[str] = []
        self._want_key = False

    def take(self, kind: str, text: bytes) -> None:
        """One more token."""
        if kind == "mark":
            self._mark(text)
        elif kind == "string" and self._want_key:
            self._keys[-1] = json.loads(text)
            kind, self._want_key = "literal", False
        elif kind in _VALUES and b"[" not in self._open:
            self.paths[len(self.pieces)] = ".".join(self._keys)
        self.pieces.append((kind if kind in _VALUES else "literal", text))

    def _mark(self, text: bytes) -> None:
        if text in {b"{", b"["}:
            self._open.append(text)
            self._want_key = text == b"{"
            if self._want_key:
                self._keys.append("")
        elif text in {b"}", b"]"}:
            self._want_key = False
            if self._open.pop() == b"{":
                self._keys.pop()
        elif text == b",":
            self._want_key = self._open[-1] == b"{"


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or any("." in key for key in found):
        raise ValueError
    return found
