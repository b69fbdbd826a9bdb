"""
The file that tells how a job ended: ExitMessage or FailureReason.

SageMaker keeps its first kilobyte, and fails a Processing job whose file is not UTF-8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.sagemaker.places import MESSAGE_BYTES
from lmi_build.store.files import write_atomic

if TYPE_CHECKING:
    from lmi_build.execute.redact import Redactor
    from lmi_build.sagemaker.places import Places
    from lmi_build.values.job import JobResult

# What a long cause leaves to the first hint.
_HINT_BYTES = 256
_CUT = b"..."


def cut(text: str, limit_bytes: int) -> bytes:
    """
    The text as UTF-8, cut between characters where it is too long.

    Half surrogate pairs, which UTF-8 has no bytes for, are written as escapes.
    """
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= limit_bytes:
        return data
    # A cut inside a character leaves bytes that decode to nothing.
    kept = data[: limit_bytes - len(_CUT)].decode("utf-8", "ignore")
    return kept.encode() + _CUT


def message_bytes(result: JobResult, redactor: Redactor) -> bytes:
    """
    What the file says: the cause with its code first, then the first hint.

    Redacted before it is cut, so that no half of a secret is left at the end.
    """
    if result.ok:
        return cut(redactor.text(result.message), MESSAGE_BYTES)
    cause = redactor.text(f"error[{result.code}]: {result.message}")
    hint = redactor.text("".join(f"\nhint: {hint}" for hint in result.hints))
    tail = cut(hint, _HINT_BYTES) if hint else b""
    head = cut(cause, MESSAGE_BYTES - len(tail))
    return head + cut(hint, MESSAGE_BYTES - len(head)) if hint else head


def write_message(places: Places, result: JobResult, redactor: Redactor) -> None:
    """
    Write the message, whole or not at all.

    Raises:
        OSError: The disk refuses even that.
    """
    path = places.message(ok=result.ok)
    if path is not None:
        write_atomic(path, message_bytes(result, redactor))
