"""Faults that a simulated job can be given."""

from __future__ import annotations

from dataclasses import dataclass

from lmi_build.errors import UsageInvalid
from lmi_build.units import parse_bytes

KILL = "kill"
STOP = "stop"
LIMIT = "limit"
DISK_FULL = "disk-full"
THROTTLE = "throttle"
LOST_HOST = "lost-host"
FORMS = "kill:STAGE|stop:STAGE|limit[:SECONDS]|disk-full[:SIZE]|throttle|lost-host"
_LIMIT_SECONDS = 10
_DISK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """
    What goes wrong.

    Args:
        kind: Of the constants above.
        stage: For `kill` and `stop`: the stage, by its name or its kind.
        seconds: For `limit`: what stands in the request; for `lost-host`: how long
            after its first stage began the host is lost, negative for a random time.
        num_bytes: For `disk-full`: what the volume holds.
    """

    kind: str
    stage: str = ""
    seconds: float = -1.0
    num_bytes: int = 0

    def strikes(self, stage: str) -> bool:
        """Whether this is the stage that it waits for."""
        return self.stage in {stage, stage.rpartition("/")[2]}


def parse_fault(text: str) -> Fault:
    """
    Read what `--fault` takes.

    Raises:
        UsageInvalid: `usage.invalid`.
    """
    kind, _, value = text.partition(":")
    try:
        if kind in {KILL, STOP} and value:
            return Fault(kind=kind, stage=value)
        if kind == LIMIT:
            return Fault(kind=kind, seconds=float(value or _LIMIT_SECONDS))
        if kind == DISK_FULL:
            num_bytes = parse_bytes(value) if value else _DISK_BYTES
            return Fault(kind=kind, num_bytes=num_bytes)
        if kind == THROTTLE and not value:
            return Fault(kind=kind)
        if kind == LOST_HOST:
            return Fault(kind=kind, seconds=float(value) if value else -1.0)
    except ValueError as error:
        raise _unknown(text, str(error)) from error
    raise _unknown(text, "it is not one of them")


def _unknown(text: str, why: str) -> UsageInvalid:
    return UsageInvalid(
        f"`--fault {text}`: {why}",
        code="usage.invalid",
        hints=(f"write {FORMS}",),
    )
