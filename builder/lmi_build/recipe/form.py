"""How a check of a text's form refuses it."""

from __future__ import annotations

import re

from pydantic_core import PydanticCustomError

_NAME_CHARACTERS = re.compile(r"[^a-z0-9._-]+")


def fault(code: str, message: str, hint: str) -> PydanticCustomError:
    """What a check raises; `problems` turns it into a `Problem`."""
    return PydanticCustomError(
        "recipe_form", "{message}", {"code": code, "message": message, "hint": hint}
    )


def slug(text: str) -> str:
    """The nearest legal name, for hints and for the names of variants."""
    return _NAME_CHARACTERS.sub("-", text.lower()).strip("-._")[:63].strip("-._")
