"""What a log says of the requests' lengths, as `lmi-build bounds` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.errors import UsageInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """
    What is known of the requests' lengths.

    Args:
        evenness: Of `EVENNESS`.
        spread: 99th percentile of a request's tokens over the median; None if unknown.
        max_input_len: Bound that the log asks for; 0 if unknown, as the next two.
        max_output_len: The same for answers.
        max_batch_size: The same for a batch.
    """

    evenness: str = "unknown"
    spread: float | None = None
    max_input_len: int = 0
    max_output_len: int = 0
    max_batch_size: int = 0


def parse_traffic(document: Mapping[str, Any], where: str) -> Traffic:
    """
    Traffic from what `lmi-build bounds LOG --output json` prints.

    Args:
        document: The JSON object.
        where: What messages call it.

    Raises:
        UsageInvalid: `advice.unreadable`: a key is missing or of another type.
    """
    try:
        percentiles = document["lengths"]["total"]["percentiles"]
        middle, long = float(percentiles["50"]), float(percentiles["99"])
        bounds = document["bounds"]
        return Traffic(
            evenness="even" if document["traffic"]["even"] else "uneven",
            spread=long / middle if middle else None,
            max_input_len=int(bounds["max_input_len"]),
            max_output_len=int(bounds["max_output_len"]),
            max_batch_size=int(bounds["max_batch_size"] or 0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageInvalid(
            f"{where} is not what `lmi-build bounds` prints: {error!r}",
            code="advice.unreadable",
            hints=("make it: `lmi-build bounds LOG --output json > FILE`",),
        ) from error
