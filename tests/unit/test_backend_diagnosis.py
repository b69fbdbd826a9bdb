"""What `doctor` says of devices and of packages that only look right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmi_build import registry
from lmi_build.spi import Answer, Finding, Host

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def found(
    backend: str,
    *,
    versions: Mapping[str, str] | None = None,
    answers: Mapping[str, str] | None = None,
) -> dict[str, Finding]:
    """The findings of one backend on a machine, by name."""

    def ask(words: Sequence[str]) -> Answer:
        output = (answers or {}).get(words[0])
        if output is None:
            return Answer(status=127, output=f"{words[0]}: not found")
        return Answer(status=0, output=output)

    host = Host(
        architecture="x86_64",
        runner="local",
        versions=lambda names: {name: (versions or {}).get(name) for name in names},
        ask=ask,
    )
    return {row.name: row for row in registry.backend(backend).diagnose(host)}


def test_a_machine_without_devices_is_told_what_works() -> None:
    """The way out stands beside each."""
    neuron, gpu = found("neuronx"), found("tensorrt-llm")

    assert not neuron["devices"].works
    assert "--rehearse" in neuron["devices"].fix
    assert not gpu["GPUs"].works
    assert list(neuron) == ["devices"]


def test_neuron_devices_are_counted() -> None:
    """Cores, driver, and what is in use."""
    rows = '[{"neuron_device": 0, "nc_count": 2, "neuron_processes": []}]'

    seen = found(
        "neuronx",
        answers={"ls": "neuron0\nnull", "cat": "inf2.8xlarge", "neuron-ls": rows},
    )

    assert seen["devices"].works
    assert "1 of inf2.8xlarge with 2 cores" in seen["devices"].evidence


@pytest.mark.parametrize(
    ("name", "stub"),
    [
        ("neuronx-cc", "1.0.post1"),
        ("torch-neuronx", "1.0"),
        ("transformers-neuronx", "0.1"),
    ],
)
def test_a_placeholder_is_called_one(name: str, stub: str) -> None:
    """PyPI has packages of these names with nothing in them."""
    row = found("neuronx", versions={name: stub})[name]

    assert not row.works
    assert "placeholder" in row.evidence
    assert "pip.repos.neuron" in row.fix


def test_packages_of_two_releases_are_found() -> None:
    """The compiler names the release; what does not belong to it is said."""
    versions = {
        "neuronx-cc": "2.15.141.0+d3cfc8ca",
        "torch-neuronx": "2.1.2.2.3.1",
        "transformers-neuronx": "0.13.380",
    }

    rows = found("neuronx", versions=versions)

    assert rows["neuronx-cc"].works
    assert "djl-neuronx-0.30.0" in rows["neuronx-cc"].evidence
    assert rows["torch-neuronx"].works
    assert not rows["transformers-neuronx"].works
    assert "0.12.313" in rows["transformers-neuronx"].evidence


def test_a_gpu_is_shown() -> None:
    """Name, compute capability, free memory, driver."""
    line = "0, NVIDIA A10G, 8.6, 23028, 22000, 550.54\n"

    rows = found(
        "tensorrt-llm",
        versions={"tensorrt-llm": "0.0.1"},
        answers={"nvidia-smi": line},
    )

    assert rows["GPU 0"].works
    assert "8.6" in rows["GPU 0"].evidence
    assert not rows["tensorrt-llm"].works
