"""What there is of each toolchain, looked at or tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.toolchains.environment import (
    folder_of,
    read_installed,
    toolchains_dir,
    wrong_versions,
)
from lmi_build.toolchains.interpreter import environment_versions, import_failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lmi_build.catalog.toolchains import Toolchain
    from lmi_build.values.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolchainRow:
    """
    One toolchain.

    Args:
        name: Its name.
        summary: One line.
        status: `installed`, `missing` or `broken`.
        versions: Pinned packages.
        python: Version of its interpreter; empty where it is not installed.
        num_bytes: On disk, every environment of this name together.
        num_older: Environments of other pins than this version's.
        folder: Where it lies, or would lie.
        evidence: What was seen.
        fix: What to do; empty where nothing needs to be done.
        tried: Where the set of pins was installed and used.
        notes: What a user should know.
    """

    name: str
    summary: str
    status: str
    versions: Mapping[str, str]
    python: str
    num_bytes: int
    num_older: int
    folder: str
    evidence: str
    fix: str
    tried: str
    notes: str


def list_toolchains(
    known: Iterable[Toolchain], settings: Settings
) -> list[ToolchainRow]:
    """Look at every toolchain, by what environments say of themselves."""
    return [_row(toolchain, settings, tried=False) for toolchain in known]


def diagnose_toolchain(toolchain: Toolchain, settings: Settings) -> ToolchainRow:
    """Import a toolchain's modules in a fresh process and compare its versions."""
    return _row(toolchain, settings, tried=True)


def _row(toolchain: Toolchain, settings: Settings, *, tried: bool) -> ToolchainRow:
    folder = folder_of(toolchain, settings)
    installed = read_installed(folder)
    others = [
        found
        for path in toolchains_dir(settings).glob(f"{toolchain.name}-*")
        if path != folder and (found := read_installed(path)) is not None
    ]
    again = (
        f"run `lmi-build toolchain remove {toolchain.name}`, then"
        f" `lmi-build toolchain install {toolchain.name}`"
    )
    evidence, fix, status = "", "", "installed"
    if installed is None:
        damaged = folder.exists()
        status = "broken" if damaged else "missing"
        evidence = f"{folder} is not whole" if damaged else "not installed"
        fix = f"run `lmi-build toolchain install {toolchain.name}`"
    else:
        evidence = ", ".join(f"{k} {v}" for k, v in toolchain.pins.items())
        fault = _fault(toolchain, settings) if tried else ""
        if wrong := wrong_versions(toolchain, installed.versions):
            fault = _name_wrong(toolchain, wrong)
        if fault:
            status, evidence, fix = "broken", fault, again
        elif tried:
            evidence = f"imported {', '.join(toolchain.imports)}; {evidence}"
    return ToolchainRow(
        name=toolchain.name,
        summary=toolchain.summary,
        status=status,
        versions=toolchain.pins,
        python=installed.python if installed else "",
        num_bytes=sum(each.num_bytes for each in (installed, *others) if each),
        num_older=len(others),
        folder=str(folder),
        evidence=evidence,
        fix=fix,
        tried=toolchain.tried,
        notes=toolchain.notes,
    )


def _name_wrong(toolchain: Toolchain, wrong: Mapping[str, str]) -> str:
    return "; ".join(
        f"{name} is {version}, pinned {toolchain.pins[name]}"
        for name, version in wrong.items()
    )


def _fault(toolchain: Toolchain, settings: Settings) -> str:
    """What is wrong with an installed toolchain, by running its interpreter."""
    python = folder_of(toolchain, settings) / "bin" / "python"
    failure = import_failure(python, toolchain, settings)
    if failure:
        return f"importing {', '.join(toolchain.imports)} failed: {failure}"
    wrong = wrong_versions(toolchain, environment_versions(python))
    return _name_wrong(toolchain, wrong) if wrong else ""
