"""The handler files that are shipped inside artifacts as `model.py`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lmi_build.digest import digest_file

if TYPE_CHECKING:
    from lmi_build.digest import Digest

_ROOT = Path(__file__).parent / "handlers"


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


@lru_cache
def handler_digest(name: str) -> Digest:
    """Name a handler's content, so that a changed handler changes the package's key."""
    return digest_file(handler_path(name))
