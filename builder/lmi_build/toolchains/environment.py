"""
A toolchain's environment on disk: where it lies and whether it counts.

| on disk | what it is | what is done |
| --- | --- | --- |
| `NAME-DIGEST/` with `toolchain.json` | installed: verified, then renamed | used |
| `NAME-DIGEST/` without it | damaged by hand | broken; `install` replaces it |
| `.partial-NAME-DIGEST/` | an install that was stopped | removed by the next one |
| `.removed-NAME-*/` | a removal that was stopped | removed by the next one |
| `NAME-OTHER/` | pins of another version of lmi-build | kept for its stages' keys |
| `.lock-NAME` | held by an install or removal, shared by workers | never removed |
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.toolchains import find_toolchain, load_toolchains
from lmi_build.errors import ToolMissing
from lmi_build.store.files import locked
from lmi_build.values.stage import Blocker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lmi_build.catalog.toolchains import Toolchain
    from lmi_build.values.settings import Settings

MARKER = "toolchain.json"
SCHEMA = "lmi-build/toolchain/v1"
# What keeps libraries of others from the network, from the user's own packages, and
# from refusing a machine with one core (GPT-QModel wants two workers).
QUIET_VARIABLES: Mapping[str, str] = {
    "PYTHONNOUSERSITE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GPTQMODEL_CPU_WORKERS": "2",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """
    What an environment says of itself.

    Args:
        folder: Where it lies.
        python: Version of its interpreter.
        versions: Every package in it.
        num_bytes: On disk, when it was installed.
    """

    folder: Path
    python: str
    versions: Mapping[str, str]
    num_bytes: int

    @property
    def interpreter(self) -> Path:
        """Its Python."""
        return self.folder / "bin" / "python"


def toolchains_dir(settings: Settings) -> Path:
    """The folder of all environments; the store's own cleaning leaves it alone."""
    return settings.cache_dir / "toolchains"


def folder_of(toolchain: Toolchain, settings: Settings) -> Path:
    """Where a toolchain's environment lies, or would lie."""
    return toolchains_dir(settings) / f"{toolchain.name}-{toolchain.digest}"


def extensions_dir(name: str, settings: Settings) -> Path:
    """Where kernels that a library compiles are kept; each takes most of a minute."""
    return toolchains_dir(settings) / "extensions" / name


def lock_path(name: str, settings: Settings) -> Path:
    """The file that keeps two installs of one toolchain apart."""
    return toolchains_dir(settings) / f".lock-{name}"


def find_installed(toolchain: Toolchain, settings: Settings) -> Installed | None:
    """The environment of exactly these pins, or None; starts no process."""
    return read_installed(folder_of(toolchain, settings))


def read_installed(folder: Path) -> Installed | None:
    """What an environment says of itself, or None where it does not count."""
    try:
        document: Any = json.loads((folder / MARKER).read_bytes())
        if document["schema"] != SCHEMA or not (folder / "bin" / "python").exists():
            return None
        return Installed(
            folder=folder,
            python=document["python"],
            versions=document["versions"],
            num_bytes=document["num_bytes"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def wrong_versions(toolchain: Toolchain, versions: Mapping[str, str]) -> dict[str, str]:
    """
    Packages that are not in their pinned version, with what is there.

    The local label of a version (`2.13.0+cpu`) says which build it is, and is not part
    of a pin.
    """
    found = {canonical(name): version for name, version in versions.items()}
    wrong = {}
    for name, pinned in toolchain.pins.items():
        version = found.get(canonical(name), "none")
        if version.partition("+")[0] != pinned:
            wrong[name] = version
    return wrong


def canonical(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pinned:
    """
    What a plan needs to know of a toolchain.

    Args:
        versions: For the stage's key; the same before and after installing.
        blocker: Why a stage cannot run with it here, or None.
    """

    versions: Mapping[str, str]
    blocker: Blocker | None = None


def pinned_toolchain(name: str, settings: Settings) -> Pinned:
    """
    Look a toolchain up for a plan; starts no process.

    Raises:
        ToolMissing: `toolchain.unknown`.
    """
    toolchain = find_toolchain(name, load_toolchains(settings.toolchains_file))
    installed = find_installed(toolchain, settings)
    blocker = None
    if installed is None:
        blocker = Blocker(
            code="tool.missing",
            message=f"needs the toolchain `{name}`, which is not installed",
            hint=f"run `lmi-build toolchain install {name}`",
        )
    elif wrong := wrong_versions(toolchain, installed.versions):
        package, version = next(iter(wrong.items()))
        blocker = Blocker(
            code="tool.missing",
            message=f"the toolchain `{name}` has {package} {version} instead of"
            f" {toolchain.pins[package]}",
            hint=f"run `lmi-build toolchain remove {name}`, then `install` it again",
        )
    return Pinned(versions=toolchain.tools, blocker=blocker)


@contextmanager
def in_use(name: str, settings: Settings) -> Iterator[Path]:
    """
    Hold a toolchain while a worker runs in it, so that nobody removes it.

    Yields:
        Its interpreter.

    Raises:
        ToolMissing: `tool.missing`, when it went away since the plan was made.
    """
    toolchain = find_toolchain(name, load_toolchains(settings.toolchains_file))
    with locked(lock_path(name, settings), shared=True):
        installed = find_installed(toolchain, settings)
        if installed is None:
            raise ToolMissing(
                f"the toolchain `{name}` is not installed",
                code="tool.missing",
                hints=(f"run `lmi-build toolchain install {name}`",),
            )
        yield installed.interpreter
