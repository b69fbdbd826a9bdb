"""
What was learnt about files that have not changed since.

A record lives in `<cache>/facts/<sha256 of its key>.json`. It repeats its key and
carries a digest of its value, so a damaged or foreign file reads as "not known" and
is written again. Nothing here is ever needed: losing the folder costs time only.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.digest import digest_file, digest_json
from lmi_build.errors import SourceInvalid

if TYPE_CHECKING:
    from lmi_build.digest import JSONValue

_LOG = logging.getLogger(__name__)

# A file changed within this time of being read may change again without its time
# stamp moving: FAT keeps two seconds, ext4 a few milliseconds. Such files are read
# again next time, like git's "racily clean" entries.
_RACY_SECONDS = 2.0

# Raised when the meaning of a record changes; old records are then not found.
_SCHEMA = 2


class FactsCache:
    """
    A folder of small JSON records.

    Args:
        folder: Where they lie; made on the first write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told = False

    def _path(self, key: JSONValue) -> Path:
        name = digest_json([_SCHEMA, key]).removeprefix("sha256:")
        return self._folder / f"{name}.json"

    def get(self, key: JSONValue) -> Any | None:
        """The value of a key, or None when it is not known or damaged."""
        try:
            record = json.loads(self._path(key).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or record.get("key") != key:
            return None
        value = record.get("value")
        try:
            whole = record.get("digest") == digest_json(value)
        except (ValueError, TypeError, UnicodeError):
            return None
        return value if whole else None

    def put(self, key: JSONValue, value: JSONValue) -> None:
        """Keep a value; a cache that cannot be written only costs time."""
        path = self._path(key)
        document = {"key": key, "value": value, "digest": digest_json(value)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, prefix=".tmp-")
        except OSError as error:
            self._tell(error)
            return
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(document, stream, ensure_ascii=False)
            Path(name).replace(path)
        except OSError as error:
            self._tell(error)
            with suppress(OSError):
                Path(name).unlink()

    def _tell(self, error: OSError) -> None:
        """Say once that nothing is kept; each further file would only repeat it."""
        if not self._told:
            self._told = True
            _LOG.warning("facts about the model are not kept: %s", error)


def file_identity(path: Path) -> list[JSONValue]:
    """
    What stands for a file's content while nobody writes to it.

    Raises:
        OSError: The file cannot be seen.
    """
    real = path.resolve(strict=True)
    stat = real.stat()
    # `surrogateescape` names are not UTF-8; JSON needs text, so bytes are spelt out.
    name = os.fsencode(real).decode("utf-8", "backslashreplace")
    return [name, stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev]


def is_settled(path: Path, *, since: float) -> bool:
    """Whether a file's time stamp is old enough to betray a later change."""
    return since - path.stat().st_mtime > _RACY_SECONDS


def cached_digest(path: Path, cache: FactsCache) -> str:
    """
    SHA-256 of a file, read only when it changed.

    Raises:
        SourceInvalid: `source.changed`: somebody wrote to it meanwhile.
    """
    before = file_identity(path)
    key: JSONValue = ["file-sha256", before]
    known = cache.get(key)
    if isinstance(known, str):
        return known
    started = time.time()
    digest = digest_file(path)
    if file_identity(path) != before:
        raise SourceInvalid(
            f"`{path}` changed while it was read",
            code="source.changed",
            hints=("wait until whatever writes to it has ended",),
        )
    if is_settled(path, since=started):
        cache.put(key, digest)
    return str(digest)
