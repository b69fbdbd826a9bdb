"""What keeps a toolchain from this machine, as every device's backend tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.values.stage import Blocker

if TYPE_CHECKING:
    from lmi_build.errors import LmiBuildError
    from lmi_build.spi import Host


def blocked_by(error: LmiBuildError, *, otherwise: str) -> Blocker:
    """
    A fault that was found before a build was begun.

    Args:
        error: The fault.
        otherwise: What can be done here without mending it.
    """
    return Blocker(
        code=error.code,
        message=error.message,
        hint="; ".join((*error.hints[:1], otherwise)),
        exit_code=error.exit_code,
    )


def docker_blocker(host: Host, *, code: str, otherwise: str = "") -> Blocker | None:
    """
    Why no container can be started here; None where Docker answers.

    Args:
        host: This machine.
        code: Stable slug, `room.fault`.
        otherwise: What can be done here without Docker; may be empty.
    """
    answer = host.ask(("docker", "version", "--format", "{{.Server.Version}}"))
    if answer.status == 0:
        return None
    said = answer.output.strip().splitlines()
    start = (
        "start the docker daemon, or run inside the image with `LMI_BUILD_RUNNER=local`"
    )
    return Blocker(
        code=code,
        message=f"docker does not answer: {said[0] if said else 'it says nothing'}",
        hint="; ".join(filter(None, (start, otherwise))),
    )
