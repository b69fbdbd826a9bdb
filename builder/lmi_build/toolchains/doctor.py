"""Trying every provider in a fresh process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build import registry
from lmi_build.catalog.toolchains import find_toolchain, load_toolchains
from lmi_build.errors import LmiBuildError
from lmi_build.toolchains.report import diagnose_toolchain
from lmi_build.toolchains.versions import installed_versions, missing_blocker
from lmi_build.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.spi import Host, ProviderInfo
    from lmi_build.values.settings import Settings

# The slowest import seen was transformers with a cold page cache, 15 s.
_IMPORT_SECONDS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """
    One thing looked at.

    Args:
        kind: `quantizer`, `backend`, `reader` or `machine`.
        name: Its name.
        works: Whether it can be used.
        evidence: What was seen.
        fix: What to do when it does not work.
    """

    kind: str
    name: str
    works: bool
    evidence: str
    fix: str = ""


def diagnose(settings: Settings, host: Host) -> list[Diagnosis]:
    """
    Look at the store's disk and try every installed provider.

    Args:
        settings: Where the store is.
        host: This machine, for backends that need devices.
    """
    rows = [_disk(settings)]
    for kind, group, load in (
        ("quantizer", registry.QUANTIZERS, registry.quantizer),
        ("backend", registry.BACKENDS, registry.backend),
    ):
        for name in registry.names(group):
            try:
                info = load(name).info
            except (LmiBuildError, ImportError) as error:
                rows.append(
                    Diagnosis(kind=kind, name=name, works=False, evidence=str(error))
                )
                continue
            rows.append(
                _toolchain(kind, info, settings)
                if info.toolchain
                else _provider(kind, info)
            )
    return [*rows, *_machine(host), _parquet()]


def _machine(host: Host) -> Iterator[Diagnosis]:
    """What each backend finds here of its devices and toolchains."""
    for name in registry.names(registry.BACKENDS):
        try:
            findings = list(registry.backend(name).diagnose(host))
        except (LmiBuildError, ImportError):
            # Said above, beside the provider.
            continue
        for found in findings:
            yield Diagnosis(
                kind="machine",
                name=f"{name}: {found.name}",
                works=found.works,
                evidence=found.evidence,
                fix=found.fix,
            )


def _toolchain(kind: str, info: ProviderInfo, settings: Settings) -> Diagnosis:
    """A provider that runs in a private environment."""
    try:
        known = load_toolchains(settings.toolchains_file)
        row = diagnose_toolchain(find_toolchain(info.toolchain, known), settings)
    except LmiBuildError as error:
        return Diagnosis(kind=kind, name=info.name, works=False, evidence=str(error))
    works = row.status == "installed"
    offers = f"; offers {', '.join(info.methods)}" if works else ""
    return Diagnosis(
        kind=kind,
        name=info.name,
        works=works,
        evidence=f"toolchain `{row.name}`: {row.evidence}{offers}",
        fix=row.fix,
    )


def _disk(settings: Settings) -> Diagnosis:
    folder = settings.cache_dir
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    probe = folder / ".lmi-build-doctor"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return Diagnosis(
            kind="machine",
            name="store",
            works=False,
            evidence=f"{folder}: {error.strerror}",
            fix="choose a writable folder: `--cache-dir DIR`",
        )
    free = f"{format_bytes(usage.free)} free of {format_bytes(usage.total)}"
    return Diagnosis(
        kind="machine",
        name="store",
        works=True,
        evidence=f"{settings.cache_dir} is writable, {free}",
    )


def _parquet() -> Diagnosis:
    """The optional package that reads calibration data in Parquet files."""
    versions = installed_versions(("pyarrow",))
    blocker = missing_blocker(versions)
    failure = "" if blocker else _import_failure(("pyarrow.parquet",))
    if blocker is not None or failure:
        return Diagnosis(
            kind="reader",
            name="parquet",
            works=False,
            evidence=f"{blocker.message if blocker else failure};"
            " only calibration data in Parquet files needs it",
            fix=blocker.hint if blocker else "reinstall: `pip install pyarrow`",
        )
    return Diagnosis(
        kind="reader",
        name="parquet",
        works=True,
        evidence=f"imported pyarrow {versions['pyarrow']}",
    )


def _provider(kind: str, info: ProviderInfo) -> Diagnosis:
    versions = installed_versions(info.distributions)
    blocker = missing_blocker(versions)
    if blocker is not None:
        return Diagnosis(
            kind=kind,
            name=info.name,
            works=False,
            evidence=blocker.message,
            fix=blocker.hint,
        )
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    seen = f"imported {listed}" if listed else "plans need no packages"
    failure = _import_failure(info.modules)
    if failure:
        return Diagnosis(
            kind=kind,
            name=info.name,
            works=False,
            evidence=f"{listed}; importing them failed: {failure}",
            fix="reinstall: `pip install --force-reinstall 'lmi-build[cpu]'`",
        )
    offers = ", ".join(info.methods or info.targets)
    return Diagnosis(
        kind=kind,
        name=info.name,
        works=True,
        evidence=f"{seen}; offers {offers}",
    )


def _import_failure(modules: tuple[str, ...]) -> str:
    """Import modules in a fresh interpreter; the last line of what went wrong."""
    code = "\n".join(f"import {name}" for name in modules)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {_IMPORT_SECONDS} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
