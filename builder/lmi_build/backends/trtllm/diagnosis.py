"""What this machine has of what building engines needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.preflight import read_gpus
from lmi_build.catalog.releases import releases
from lmi_build.errors import LmiBuildError
from lmi_build.spi import Finding
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.spi import Host

_PACKAGE = "tensorrt-llm"


def diagnose(host: Host) -> Iterator[Finding]:
    """
    GPUs, and the TensorRT-LLM beside this Python.

    Args:
        host: This machine.
    """
    try:
        gpus = read_gpus(host.ask)
    except LmiBuildError as error:
        yield Finding(
            name="GPUs",
            works=False,
            evidence=error.message,
            fix="`--until checkpoint` needs none, and `--rehearse` shows the rest",
        )
    else:
        for gpu in gpus:
            free = f"{format_bytes(gpu.free_bytes)} of {format_bytes(gpu.total_bytes)}"
            yield Finding(
                name=f"GPU {gpu.index}",
                works=True,
                evidence=f"{gpu.name}, compute capability {gpu.compute_capability},"
                f" {free} free, driver {gpu.driver}",
            )
    found = host.versions((_PACKAGE,)).get(_PACKAGE)
    if found is not None:
        named = [name for name, row in releases().items() if row.trtllm == found]
        yield Finding(
            name=_PACKAGE,
            works=bool(named),
            evidence=f"{found}, as in `{named[0]}`"
            if named
            else f"{found} is no release's of the catalogue",
            fix="" if named else "build in the image of a release",
        )
