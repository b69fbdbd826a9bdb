"""What a machine must have before a Neuron model is compiled on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lmi_build.backends.neuronx.blockers import neuron_blocker, neuron_needs
from lmi_build.backends.neuronx.preflight import (
    Device,
    Hardware,
    Needs,
    check_hardware,
    check_host,
    older_driver,
    read_hardware,
    uses_device,
)
from lmi_build.errors import DoesNotFit, LmiBuildError
from lmi_build.spi import Answer, Host
from neuron_machine import NEW, OLD, llama_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

NOTHING = Answer(status=127, output="not found")
GIB = 1 << 30


def machine(
    *, devices: int = 1, instance: str = "inf2.8xlarge", listed: bool = True
) -> Callable[[Sequence[str]], Answer]:
    """A machine's answers; without `listed` it has no `neuron-ls`."""
    rows = [
        {"neuron_device": index, "nc_count": 2, "neuron_processes": []}
        for index in reversed(range(devices))
    ]

    def ask(words: Sequence[str]) -> Answer:
        if words[0] == "ls":
            names = [f"neuron{index}" for index in range(devices)]
            return Answer(status=0, output="\n".join(["null", *names, "neuron_x"]))
        if words[0] == "cat" and words[1].endswith("product_name"):
            return Answer(status=0, output=f"{instance}\n")
        if words[0] == "cat":
            return Answer(status=0, output="2.18.12.0\n")
        if words[0] == "neuron-ls" and listed:
            return Answer(status=0, output="warning\n" + json.dumps(rows))
        return NOTHING

    return ask


def needs(**changed: object) -> Needs:
    """What a build on a device takes."""
    values: dict[str, object] = {
        "versions": {},
        "target": "ml.inf2.24xlarge",
        "num_cores": 12,
        "device_needed": True,
        "host_bytes": GIB,
        "disk_bytes": GIB,
        **changed,
    }
    return Needs(**values)  # type: ignore[arg-type]


def code_of(hardware: Hardware, wanted: Needs) -> str:
    """Code of the fault, or nothing."""
    try:
        check_hardware(hardware, wanted)
    except LmiBuildError as error:
        return error.code
    return ""


@pytest.mark.parametrize("listed", [True, False])
def test_devices_are_read_in_order(listed: object) -> None:
    """Device files decide; `neuron-ls` says the cores, or the family does."""
    found = read_hardware(machine(devices=12, listed=bool(listed)))

    assert [device.path for device in found.devices] == [
        f"/dev/neuron{index}" for index in range(12)
    ]
    assert {device.num_cores for device in found.devices} == {2}
    assert (found.family, found.driver) == ("inf2", "2.18.12.0")


@pytest.mark.parametrize(
    "output", ["", "[", "{}", "no devices", '[1, "x"]', '[{"neuron_device": 9}]']
)
def test_a_list_that_is_none(output: str) -> None:
    """What cannot be read says nothing, and the family's number is taken."""

    def ask(words: Sequence[str]) -> Answer:
        if words[0] == "neuron-ls":
            return Answer(status=0, output=output)
        return machine()(words)

    (device,) = read_hardware(ask).devices
    assert device == Device(path="/dev/neuron0", num_cores=2, busy=False)


def test_a_machine_without_anything() -> None:
    found = read_hardware(lambda _: NOTHING)

    assert found == Hardware(instance="", devices=(), driver="")
    assert code_of(found, needs()) == "neuronx.no-device"
    assert code_of(found, needs(device_needed=False)) == ""


@pytest.mark.parametrize(
    ("instance", "devices", "code"),
    [
        ("inf2.24xlarge", 6, ""),
        ("trn1.32xlarge", 16, ""),
        ("inf2.24xlarge", 5, "neuronx.busy-cores"),
        ("inf1.24xlarge", 16, "neuronx.wrong-device"),
        ("trn2.48xlarge", 16, "neuronx.wrong-device"),
        ("", 6, ""),
        ("Standard PC", 6, ""),
    ],
)
def test_which_machine_compiles_for_an_inf2(
    instance: str, devices: int, code: str
) -> None:
    """Any with NeuronCores of the same version and enough of them."""
    found = read_hardware(machine(devices=devices, instance=instance))

    assert code_of(found, needs()) == code
    assert code_of(found, needs(device_needed=False)) == ""
    assert uses_device(found, needs(device_needed=False)) is (code == "")


def test_cores_in_use_do_not_count() -> None:
    """They are named, and a build that can do without does."""
    devices = tuple(
        Device(path=f"/dev/neuron{index}", num_cores=2, busy=index == 3)
        for index in range(6)
    )
    found = Hardware(instance="inf2.24xlarge", devices=devices, driver="")

    with pytest.raises(DoesNotFit, match=r"10 are free here .*neuron3 in use"):
        check_hardware(found, needs())
    assert not uses_device(found, needs(device_needed=False))


def test_a_host_that_is_too_small() -> None:
    check_host(needs(), GIB, GIB)
    with pytest.raises(DoesNotFit, match=r"1\.0 GiB of host memory"):
        check_host(needs(), GIB - 1, GIB)
    with pytest.raises(DoesNotFit, match=r"1\.0 GiB of disk"):
        check_host(needs(), GIB, GIB - 1)


@pytest.mark.parametrize(
    ("driver", "compiler", "newer"),
    [
        ("2.18.12.0", "2.16.372.0", "2.19.64.0"),
        ("2.19.64.0", "2.16.372.0+4a9b2326", ""),
        ("2.20.0", "2.16.372.0", ""),
        ("2.9.4.0", "2.15.141.0", "2.18.12.0"),
        ("2.9.4.0", "2.99.0.0", ""),
        ("unknown", "2.16.372.0", ""),
        ("", "2.16.372.0", ""),
    ],
)
def test_a_driver_older_than_the_compiler(
    driver: str, compiler: str, newer: str
) -> None:
    hardware = Hardware(instance="", devices=(), driver=driver)

    assert older_driver(hardware, compiler) == newer


def host(
    ask: Callable[[Sequence[str]], Answer],
    *,
    installed: Mapping[str, str] | None = None,
    runner: str = "local",
    architecture: str = "x86_64",
) -> Host:
    """The machine that plans."""

    def versions(names: Iterable[str]) -> Mapping[str, str | None]:
        return {name: (installed or {}).get(name) for name in names}

    return Host(architecture=architecture, runner=runner, versions=versions, ask=ask)


def blocked(release: str, here: Host) -> str:
    """Code of what a plan says is missing here."""
    plan = llama_plan(release=release)
    small = neuron_needs(plan, "ml.inf2.8xlarge", host_bytes=1, disk_bytes=1)
    found = neuron_blocker(plan, small, here)
    if found is None:
        return ""
    assert "--rehearse" in found.hint
    return found.code


def test_what_blocks_a_plan() -> None:
    """Devices first, then the processor, then the toolchain."""
    bare = machine(devices=0)
    own = {name: f"{version}+x" for name, version in llama_plan().versions.items()}

    assert blocked(OLD, host(bare)) == "neuronx.no-device"
    assert blocked(NEW, host(bare)) == "neuronx.no-toolchain"
    assert blocked(NEW, host(bare, installed=own)) == ""
    assert blocked(OLD, host(machine(), installed=own)) == "neuronx.no-toolchain"
    arm = host(bare, installed=own, architecture="aarch64")
    assert blocked(NEW, arm) == "neuronx.wrong-processor"
    assert blocked(NEW, host(bare, runner="container")) == "neuronx.no-docker"


def test_a_plan_names_every_package_that_is_another() -> None:
    plan = llama_plan()
    small = neuron_needs(plan, "ml.inf2.8xlarge", host_bytes=1, disk_bytes=1)

    found = neuron_blocker(
        plan, small, host(machine(), installed={"neuronx-cc": "2.14.0"})
    )

    assert found is not None
    assert "neuronx-cc 2.16.372.0 (2.14.0)" in found.message
    assert "transformers-neuronx 0.13.380 (absent)" in found.message
