"""What the planner may know of the world."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from lmi_build.digest import Digest
    from lmi_build.spi import Backend, Host, Quantizer
    from lmi_build.toolchains.environment import Pinned
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.settings import Settings
    from lmi_build.values.stage import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """
    What the planner may know.

    Args:
        facts: Recipe name to its pinned model.
        quantizer: Finds a quantizer by name.
        backend: Finds a backend by name.
        versions: Versions of installed packages.
        handler_digest: Content of a serving handler by name.
        host: The machine, as far as backends may know it.
        num_cores: Cores this process may use: the threads of a worker by default.
        settings: The user's environment.
        toolchain: Pins of a private environment by name, installed or not.
        planned_on: This machine's processor where a lock names another; else empty.
        shared: Stages that were made already, by what makes them; filled as plans are
            made, so that what many recipes share is made once.
    """

    facts: Mapping[str, ModelFacts]
    quantizer: Callable[[str], Quantizer]
    backend: Callable[[str], Backend]
    versions: Callable[[Iterable[str]], Mapping[str, str | None]]
    handler_digest: Callable[[str], Digest]
    host: Host
    num_cores: int
    settings: Settings
    toolchain: Callable[[str], Pinned] | None = None
    planned_on: str = ""
    shared: dict[Hashable, Stage] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """Processor of this host, `x86_64` or `aarch64`."""
        return self.host.architecture
