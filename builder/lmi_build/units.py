"""Bytes and seconds, read from and written for people."""

from __future__ import annotations

import re
from typing import NewType

Bytes = NewType("Bytes", int)

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": KiB,
    "mib": MiB,
    "gib": GiB,
    "tib": TiB,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*\Z")
_MINUTE_SECONDS = 60


def parse_bytes(text: str) -> Bytes:
    """
    Read a size such as `24GiB`, `500 MB` or `1048576`.

    Raises:
        ValueError: The text is not a size; the message lists the units.
    """
    match = _SIZE.match(text)
    unit = match.group(2).lower() if match else None
    if match is None or unit not in _UNITS:
        msg = f"`{text}` is not a size; write a number and B, KiB, MiB, GiB or TiB"
        raise ValueError(msg)
    return Bytes(round(float(match.group(1)) * _UNITS[unit]))


def format_bytes(count: int) -> str:
    """Write a size with one decimal in IEC units: `1.5 GiB`."""
    for unit, name in ((TiB, "TiB"), (GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if abs(count) >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def format_seconds(seconds: float) -> str:
    """Write a duration: `0.4 s`, `12.0 s`, `3 min 05 s`."""
    if seconds < _MINUTE_SECONDS:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE_SECONDS)
    return f"{minutes} min {rest:02d} s"
