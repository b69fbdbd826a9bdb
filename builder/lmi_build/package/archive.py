"""`model.tar.gz`, the same bytes for the same files on every machine."""

from __future__ import annotations

import tarfile
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Weights hardly shrink: the fastest level, as the time is SageMaker's to unpack too.
_LEVEL = 1


def write_archive(root: Path, names: Sequence[str], to: Path) -> None:
    """
    Pack the named files, in the order given, without times, owners or modes.

    ISA-L compresses several times faster than zlib; both write valid gzip, but not
    the same bytes, so its version is one of the package stage's tools.

    Args:
        root: The artifact.
        names: Paths relative to it.
        to: The archive; must not be one of the names.
    """
    with (
        to.open("wb") as raw,
        _compressor(raw) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in names:
            _add(tar, root / name, name)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    info.mode = 0o644
    with path.open("rb") as stream:
        tar.addfile(info, stream)


def _compressor(raw: IO[bytes]) -> IO[bytes]:
    try:
        from isal.igzip import IGzipFile as Compressor
    except ImportError:
        from gzip import GzipFile as Compressor
    stream: Any = Compressor(
        filename="", fileobj=raw, mode="wb", compresslevel=_LEVEL, mtime=0
    )
    return cast("IO[bytes]", stream)
