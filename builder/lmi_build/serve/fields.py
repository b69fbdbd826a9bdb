"""Reading a JSON object field by field, refusing what does not fit."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from lmi_build.serve.problems import Refused
from lmi_build.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable


def parse_object(data: bytes) -> dict[str, Any]:
    """
    Read a request body.

    Raises:
        Refused: It is not UTF-8, not JSON, not an object, or nested absurdly deep.
    """
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError:
        _malformed("the body is nested too deep")
    except ValueError as error:
        _malformed(f"the body is not JSON: {error}")
    if not isinstance(document, dict):
        _malformed(f"the body must be an object, it is {type_name(document)}")
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _malformed(message: str) -> NoReturn:
    raise Refused(message, code="malformed_json")


def type_name(value: object) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    names |= {list: "an array", dict: "an object"}
    return names.get(type(value), type(value).__name__)


@dataclass(frozen=True, slots=True)
class Fields:
    """
    One JSON object being read.

    Args:
        document: The object.
        where: Its own name, for messages; empty at the top.
    """

    document: dict[str, Any]
    where: str = ""

    def name(self, key: str) -> str:
        """The dotted name of a field."""
        return f"{self.where}.{key}" if self.where else key

    def refuse(
        self, key: str, message: str, *, code: str = "invalid_value"
    ) -> NoReturn:
        """
        Refuse the request because of a field.

        Raises:
            Refused: Always.
        """
        raise Refused(f"`{self.name(key)}` {message}", code=code, param=self.name(key))

    def only(self, known: Iterable[str]) -> None:
        """Refuse fields that nobody reads, naming the nearest one that is."""
        known = tuple(known)
        for key in self.document:
            if key not in known:
                near = did_you_mean(key, known)
                hint = f"; did you mean `{self.name(near)}`?" if near else ""
                self.refuse(key, f"is not a known field{hint}", code="unknown_field")

    def text(self, key: str) -> str:
        """A string that can be encoded."""
        return self.checked_text(key, self.document.get(key))

    def checked_text(self, key: str, value: object) -> str:
        """The same, for a value that is already at hand."""
        if not isinstance(value, str):
            self.refuse(key, f"must be a string, it is {type_name(value)}")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.refuse(key, "has half a surrogate pair, which is not text")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, or None when it is absent or null."""
        return None if self.document.get(key) is None else self.text(key)

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean."""
        value = self.document.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, f"must be a boolean, it is {type_name(value)}")
        return value

    def whole(self, key: str, *, low: int, high: int | None = None) -> int | None:
        """A whole number between two ends, or None when it is absent."""
        value = self.document.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(key, f"must be a whole number, it is {_shown(value)}")
        if value < low or (high is not None and value > high):
            end = f"at least {low}" if high is None else f"between {low} and {high}"
            self.refuse(key, f"is {value}, it must be {end}")
        return value

    def number(self, key: str, *, low: float, high: float) -> float | None:
        """A number between two ends, or None when it is absent."""
        value = self.document.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.refuse(key, f"must be a number, it is {_shown(value)}")
        if not low <= value <= high or not math.isfinite(value):
            self.refuse(key, f"is {value}, it must be between {low:g} and {high:g}")
        return float(value)

    def mapping(self, key: str) -> Fields:
        """An object of its own; empty when it is absent or null."""
        value = self.document.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.refuse(key, f"must be an object, it is {type_name(value)}")
        return Fields(value, self.name(key))


def _shown(value: object) -> str:
    return str(value) if isinstance(value, float) else type_name(value)
