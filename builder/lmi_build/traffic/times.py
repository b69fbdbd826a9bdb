"""Times of arrival as logs write them, to the second."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

# A number is seconds, milliseconds, microseconds or nanoseconds since 1970, whichever
# puts it before the year 5138; logs of relative times start at 0.
_UNITS = ((1e11, 1), (1e14, 1_000), (1e17, 1_000_000), (1e20, 1_000_000_000))
_FRACTION_AT = len("2024-01-01T00:00:00")
_DIGITS = "0123456789"


def second_of(value: Any) -> int | None:
    """
    The second of a time, or None for what is no time.

    Args:
        value: A number, or text in ISO 8601; without a zone it is UTC.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, datetime):
        return _second(value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return _from_iso(value.strip())
    if not isinstance(value, (int, float)):
        return None
    for below, per_second in _UNITS:
        if 0 <= value < below:
            return int(value // per_second)
    return None


def _from_iso(text: str) -> int | None:
    # Python 3.10 knows neither `Z` nor fractions other than 3 or 6 digits.
    if text[-1:] in {"Z", "z"}:
        text = f"{text[:-1]}+00:00"
    head, tail = text[:_FRACTION_AT], text[_FRACTION_AT:]
    if tail[:1] in {".", ","}:
        tail = tail[1:].lstrip(_DIGITS)
    try:
        return _second(datetime.fromisoformat(head + tail))
    except ValueError:
        return None


def _second(moment: datetime) -> int | None:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    try:
        return int(moment.timestamp() // 1)
    except (OverflowError, ValueError):
        return None
