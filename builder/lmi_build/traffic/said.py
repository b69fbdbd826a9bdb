"""What `--traffic` names as one document: a log, or what `bounds` printed of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.traffic.propose import proposal_document, propose
from lmi_build.traffic.read import ReadOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.values.settings import Settings

# What `bounds` prints is a few kilobytes; a log may be anything.
_MOST_BYTES = 1 << 20
_KEY = "lengths"


def traffic_document(source: str, settings: Settings) -> Mapping[str, Any]:
    """
    What a log says, whether it is read now or was read before.

    Which of the two a file is, its content says: one JSON object with `lengths` is what
    `lmi-build bounds LOG --output json` prints; everything else is a log.

    Args:
        source: A path, `-`, or `s3://bucket/key`.
        settings: Credentials and endpoint of S3.

    Returns:
        The document that `bounds` prints, with times of arrival where the log has them.

    Raises:
        SourceInvalid: The log cannot be read or says too little.
        RemoteFailed: S3 refused or vanished.
    """
    printed = _printed(source)
    if printed is not None:
        return printed
    options = ReadOptions(times_if_any=True)
    return proposal_document(propose(source, settings=settings, options=options))


def _printed(source: str) -> Mapping[str, Any] | None:
    """What `bounds` printed into a file; None where the file is anything else."""
    if source == "-" or "://" in source:
        return None
    path = Path(source)
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        # Its reader says what is wrong with a log that cannot be read.
        return None
    return found if isinstance(found, dict) and _KEY in found else None
