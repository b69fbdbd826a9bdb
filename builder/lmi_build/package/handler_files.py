"""
The handlers that are shipped inside artifacts as `model.py`.

A handler is one file in a container, and several share their code here: what it
imports from another module of `handlers/` is put in the place of that import.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.digest import digest_bytes

if TYPE_CHECKING:
    from lmi_build.digest import Digest

_ROOT = Path(__file__).parent / "handlers"
_ROOM = "lmi_build.package.handlers."
_FUTURE = "from __future__ import annotations\n"


def handler_path(name: str) -> Path:
    """
    The file of a handler, by its name without `.py`.

    Raises:
        ValueError: No such handler is installed with this version.
    """
    path = _ROOT / f"{name}.py"
    if not name.isidentifier() or not path.is_file():
        raise ValueError(f"no handler `{name}` in {_ROOT.name}/")
    return path


def handler_source(name: str) -> bytes:
    """
    A handler as one file that needs nothing of lmi-build.

    Raises:
        ValueError: No such handler is installed with this version.
    """
    return _inlined(name, set()).encode()


def _inlined(name: str, done: set[str]) -> str:
    """A module with what it imports from the others in place, each of them once."""
    done.add(name)
    text = handler_path(name).read_text("utf-8")
    lines = text.splitlines(keepends=True)
    # Top down, so that a module stands before the first one that imports it; lines of
    # an import that was replaced are kept empty, so that the others keep their numbers.
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_ROOM):
            shared = (node.module or "").removeprefix(_ROOM)
            body = "" if shared in done else _inlined(shared, done)
            end = node.end_lineno or node.lineno
            lines[node.lineno - 1 : end] = [
                body.replace(_FUTURE, "", 1),
                *[""] * (end - node.lineno),
            ]
    return "".join(lines)


@lru_cache
def handler_digest(name: str) -> Digest:
    """Name a handler's content, so that a changed handler changes the package's key."""
    return digest_bytes(handler_source(name))
