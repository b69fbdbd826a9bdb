"""What this machine has of what compiling for Neuron devices needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.drivers.common import missing_libraries
from lmi_build.backends.neuronx.preflight import read_hardware
from lmi_build.backends.neuronx.toolchain import INDEX, same_version
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.spi import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.spi import Host

# The distribution whose version names a release.
_COMPILER = "neuronx-cc"
_PACKAGES: dict[str, str] = {
    _COMPILER: "neuronx_cc",
    "torch-neuronx": "torch_neuronx",
    "transformers-neuronx": "transformers_neuronx",
}


def diagnose(host: Host) -> Iterator[Finding]:
    """
    Devices, packages, and the libraries that the compiler misses only after minutes.

    Args:
        host: This machine.
    """
    yield _devices(host)
    versions = host.versions(_PACKAGES)
    if any(versions.values()):
        yield from _packages({name: text or "" for name, text in versions.items()})
        yield _libraries()


def _devices(host: Host) -> Finding:
    hardware = read_hardware(host.ask)
    if not hardware.devices:
        return Finding(
            name="devices",
            works=False,
            evidence="no `/dev/neuron0`; most releases compile only beside a device",
            fix="`build --rehearse` shows every call without one; compile on an inf2 or"
            " trn1 instance",
        )
    count, cores = len(hardware.devices), sum(x.num_cores for x in hardware.devices)
    busy = sum(device.busy for device in hardware.devices)
    driver = f", driver {hardware.driver}" if hardware.driver else ""
    return Finding(
        name="devices",
        works=busy < count,
        evidence=f"{count} of {hardware.instance or 'an unknown machine'} with {cores}"
        f" cores{driver}; {busy} in use",
        fix="end what uses them: `neuron-ls` names it" if busy else "",
    )


def _packages(versions: dict[str, str]) -> Iterator[Finding]:
    found = _release(versions[_COMPILER])
    for name, version in versions.items():
        if version:
            yield _package(name, version, found)


def _release(compiler: str) -> NeuronRelease | None:
    """The release whose compiler this is, the published one of several."""
    rows = [
        row
        for row in neuron_releases().values()
        if compiler and same_version(row.neuronx_cc, compiler)
    ]
    rows.sort(key=lambda row: not row.published)
    return rows[0] if rows else None


def _package(name: str, version: str, release: NeuronRelease | None) -> Finding:
    known = {getattr(row, _PACKAGES[name]) for row in neuron_releases().values()}
    if not any(same_version(text, version) for text in known if text):
        return Finding(
            name=name,
            works=False,
            evidence=f"{version} is no release's; PyPI has only placeholders of that"
            " name, without a library in them",
            fix=f"Neuron's own index has it: {INDEX}",
        )
    wanted = getattr(release, _PACKAGES[name]) if release else ""
    same = release is None or same_version(wanted, version)
    return Finding(
        name=name,
        works=same,
        evidence=f"{version}, as in `{release.name}`"
        if release and same
        else f"{version}; `{release.name}` has {wanted}"
        if release
        else version,
        fix="" if same else "install the versions of one release together",
    )


def _libraries() -> Finding:
    missing = missing_libraries()
    listed = ", ".join(missing)
    return Finding(
        name="compiler's libraries",
        works=not missing,
        evidence=f"not found: {listed}; it says so only after minutes"
        if missing
        else "all found",
        fix="install them, such as `apt-get install libxml2`" if missing else "",
    )
