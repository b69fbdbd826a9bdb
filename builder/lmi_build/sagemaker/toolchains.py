"""Toolchains that stages of a job need, put in place before the first stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.catalog.toolchains import find_toolchain, load_toolchains
from lmi_build.toolchains.environment import find_installed
from lmi_build.toolchains.install import install

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Stage


def install_missing(
    stages: Sequence[Stage],
    settings: Settings,
    environ: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """
    Install the toolchains that these stages run in; pins make them the plan's own.

    Args:
        stages: Those that have to be built.
        settings: Where toolchains lie.
        environ: For pip: where its index is.
        say: Told of what is done.

    Raises:
        ToolMissing: `toolchain.unknown`, or no Python here can hold it.
        RemoteFailed: The index cannot be reached.
    """
    known = load_toolchains(settings.toolchains_file)
    for name in dict.fromkeys(stage.toolchain for stage in stages if stage.toolchain):
        toolchain = find_toolchain(name, known)
        if find_installed(toolchain, settings) is None:
            install(toolchain, settings, environ, say=say)
