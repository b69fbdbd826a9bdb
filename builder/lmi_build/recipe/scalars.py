"""Plain scalars, resolved by the core schema of YAML 1.2."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

Scalar: TypeAlias = bool | int | float | str | None

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INT = re.compile(r"[-+]?[0-9]+\Z")
_BASED_INT = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")

# No count, length or share of a recipe needs more; a 64-bit integer has 19 digits.
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Resolved:
    """
    What a plain scalar means.

    Args:
        value: Its value; text where the number cannot be used.
        code: Code of the fault its spelling has, or empty.
        message: That fault.
        hint: The way out.
    """

    value: Scalar
    code: str = ""
    message: str = ""
    hint: str = ""


def resolve(text: str) -> Resolved:
    """Read one plain (unquoted) scalar."""
    if text in _NULLS:
        return Resolved(None)
    if text in _TRUE:
        return Resolved(value=True)
    if text in _FALSE:
        return Resolved(value=False)
    if text[0] in "+-.0123456789":
        return _resolve_number(text)
    return Resolved(text)


def _resolve_number(text: str) -> Resolved:
    if _NOT_FINITE.match(text):
        return _not_finite(text)
    based = _BASED_INT.match(text)
    whole = _INT.match(text)
    if (based or whole) and len(text) > _MAX_DIGITS:
        return Resolved(
            text,
            "recipe.number-too-large",
            f"a number of {len(text)} digits is larger than anything a recipe counts",
            "write a smaller number, or quote it when it is text",
        )
    if based:
        return _unclear(int(text, 0), "octal or hexadecimal number", article="an")
    if whole:
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0":
            return _unclear(int(text), "number with a leading zero", quote=text)
        return Resolved(int(text))
    if _FLOAT.match(text):
        value = float(text)
        return Resolved(value) if math.isfinite(value) else _not_finite(text)
    return Resolved(text)


def _not_finite(text: str) -> Resolved:
    shown = text if len(text) <= _MAX_DIGITS else f"{text[:_MAX_DIGITS]}..."
    return Resolved(
        text,
        "recipe.not-finite",
        f"`{shown}` is not a finite number",
        "write a finite decimal number",
    )


def _unclear(value: int, what: str, *, article: str = "a", quote: str = "") -> Resolved:
    return Resolved(
        value,
        "recipe.number-form",
        f"{article} {what} is read differently by YAML 1.1 and YAML 1.2",
        f'write `{value}`, or `"{quote}"` when it is text'
        if quote
        else f"write `{value}`",
    )
