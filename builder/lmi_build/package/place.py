"""Putting a large file somewhere else without writing its bytes again."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Below this a copy costs nothing, and a file of its own can be edited by hand
# without reaching into the store.
_COPY_BELOW_BYTES = 1 << 20
# Another file system, too many links, or a file system without links.
_NO_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.EACCES}


def place(source: Path, to: Path) -> None:
    """
    Hard-link a large file, or copy it; neither is ever modified afterwards.

    Raises:
        OSError: It can be neither linked nor copied.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve(strict=True)
    if real.stat().st_size >= _COPY_BELOW_BYTES:
        try:
            os.link(real, to)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        else:
            return
    # On Linux this uses copy_file_range, which shares extents where it can.
    _copy(real, to)


def _copy(source: Path, to: Path) -> None:
    with source.open("rb") as reading, to.open("wb") as writing:
        left = os.fstat(reading.fileno()).st_size
        try:
            while left > 0:
                sent = os.copy_file_range(reading.fileno(), writing.fileno(), left)
                if sent == 0:
                    break
                left -= sent
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.ENOSYS, errno.EINVAL}:
                raise
            reading.seek(0)
            writing.seek(0)
            writing.truncate()
            shutil.copyfileobj(reading, writing, 1 << 20)
