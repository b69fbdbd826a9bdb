"""Putting a large file somewhere else without writing its bytes again."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from lmi_build.store import files

if TYPE_CHECKING:
    from pathlib import Path

# Below this a copy costs nothing, and a file of its own can be edited by hand
# without reaching into the store.
_COPY_BELOW_BYTES = 1 << 20


def place(source: Path, to: Path) -> None:
    """
    Share or hard-link a large file, else copy it; neither is modified afterwards.

    Raises:
        OSError: It can be neither linked nor copied.
    """
    real = source.resolve(strict=True)
    if real.stat().st_size >= _COPY_BELOW_BYTES:
        files.place(real, to)
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(real, to)
