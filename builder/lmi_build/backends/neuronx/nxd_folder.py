"""Small JSON files of an export, read without trust."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmi_build.backends.folder import read_text
from lmi_build.errors import VerifyFailed

if TYPE_CHECKING:
    from lmi_build.backends.folder import Folder


def json_object(folder: Folder, name: str) -> dict[str, Any] | str:
    """
    A JSON object, or why there is none, as half a sentence.

    Args:
        folder: What lies there.
        name: Path of the file in it.
    """
    if not folder.has(name):
        return f"there is no {name}"
    try:
        document = json.loads(read_text(folder, name))
    except (ValueError, RecursionError, VerifyFailed):
        return f"{name} cannot be read"
    return document if isinstance(document, dict) else f"{name} is no object"
