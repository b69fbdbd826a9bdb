"""Which Neuron toolchain answers, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.backends.neuronx.toolchain import (
    check_toolchain,
    read_line,
    same_version,
)
from lmi_build.backends.neuronx.workplace import ship
from lmi_build.backends.running import ask_with
from lmi_build.errors import ToolMissing
from lmi_build.spi import Answer
from neuron_machine import NEW, install_packages, write_metadata

if TYPE_CHECKING:
    from pathlib import Path

WANTED = {
    "libneuronxla": "2.1.714.0",
    "neuronx-cc": "2.16.372.0",
    "torch-neuronx": "2.1.2.2.4.0",
    "transformers": "4.45.2",
    "transformers-neuronx": "0.13.380",
}
# PyPI's packages of these names: version, module and what it does when imported.
PLACEHOLDERS = {
    "libneuronxla": ("1.0", "libneuronxla"),
    "neuronx-cc": ("1.0.post1", "neuronx-cc"),
    "torch-neuronx": ("1.0", "torch_neuronx"),
    "transformers-neuronx": ("0.1", "transformers_neuronx"),
}
REFUSAL = 'raise ImportError("WRONG PACKAGE. Please install it from elsewhere")\n'


def probed(site: Path, *, compiler: bool = True) -> Answer:
    """What a driver's probe says of the packages in a folder."""
    root = site.parent
    ship(root / "driver")
    programs = root / "bin"
    programs.mkdir()
    if compiler:
        (programs / "neuronx-cc").write_text("#!/bin/sh\n")
        (programs / "neuronx-cc").chmod(0o755)
    environment = {
        "PYTHONPATH": str(site),
        "PATH": f"{programs}:/usr/bin:/bin",
        "STANDIN_WITHOUT_TRACE": "1",
    }
    words = [sys.executable, str(root / "driver"), "probe", *sorted(WANTED)]
    return ask_with(environment)(words)


def fault_of(answer: Answer, where: str = "this environment") -> ToolMissing:
    """Why a toolchain is refused."""
    with pytest.raises(ToolMissing) as caught:
        check_toolchain(answer, WANTED, where=where)
    return caught.value


def without(site: Path, name: str) -> None:
    """Take a distribution's metadata and modules away."""
    for path in site.glob(f"{name.replace('-', '_')}*"):
        shutil.rmtree(path)
    if name == "neuronx-cc":
        shutil.rmtree(site / "neuronxcc")


def test_the_releases_own_packages(tmp_path: Path) -> None:
    """They are taken, the compiler's with the mark of its build."""
    site = install_packages(tmp_path / "site", NEW, {})

    found = check_toolchain(probed(site), WANTED, where="this environment")

    assert found.prefix == str(site)
    assert found.versions["neuronx-cc"] == "2.16.372.0+4a9b2326"


@pytest.mark.parametrize("name", sorted(PLACEHOLDERS))
def test_a_placeholder_of_the_index(name: str, tmp_path: Path) -> None:
    """Laid out as PyPI's are: a module that refuses, or one that has no name."""
    site = install_packages(tmp_path / "site", NEW, {})
    without(site, name)
    version, module = PLACEHOLDERS[name]
    write_metadata(site, name, version)
    (site / module).mkdir()
    (site / module / "__init__.py").write_text(REFUSAL)

    error = fault_of(probed(site))

    assert error.code == "neuronx.stub"
    assert f"{name} {version}" in error.message
    assert "pip.repos.neuron.amazonaws.com" in error.hints[0]


def test_a_placeholder_that_can_be_imported(tmp_path: Path) -> None:
    """An empty module is no library either."""
    site = install_packages(tmp_path / "site", NEW, {})
    without(site, "transformers-neuronx")
    write_metadata(site, "transformers-neuronx", "0.1")
    (site / "transformers_neuronx").mkdir()
    (site / "transformers_neuronx" / "__init__.py").touch()

    assert fault_of(probed(site)).code == "neuronx.stub"


# The Python of the tests has a transformers of its own.
@pytest.mark.parametrize("name", sorted(set(WANTED) - {"transformers"}))
def test_a_package_that_is_not_there(name: str, tmp_path: Path) -> None:
    """Nothing of it is installed; the hint has every pin."""
    site = install_packages(tmp_path / "site", NEW, {})
    for path in site.glob(f"{name.replace('-', '_')}-*.dist-info"):
        path.rename(tmp_path / path.name)

    error = fault_of(probed(site))

    assert error.code == "neuronx.absent"
    assert f"{name}; the release has" in error.message
    assert "neuronx-cc==2.16.372.0" in error.hints[-1]


def test_a_package_whose_dependency_is_missing(tmp_path: Path) -> None:
    """The right version that cannot be imported says what it lacks."""
    site = install_packages(tmp_path / "site", NEW, {})
    (site / "transformers_neuronx" / "__init__.py").write_text("import torch_xla_2")

    error = fault_of(probed(site))

    assert error.code == "neuronx.broken"
    assert "torch_xla_2" in error.message


def test_no_program_of_the_compiler(tmp_path: Path) -> None:
    """The package alone compiles nothing."""
    site = install_packages(tmp_path / "site", NEW, {})

    assert fault_of(probed(site, compiler=False)).code == "neuronx.no-compiler"


def test_a_system_library_that_is_missing(tmp_path: Path) -> None:
    """A program of the compiler that is linked against what is not here."""
    found = {
        "event": "toolchain",
        "versions": WANTED,
        "errors": {},
        "missing_symbols": [],
        "compiler": "/opt/neuronx-cc",
        "libraries": ["libxml2.so.2"],
        "prefix": "/opt",
        "python": "3.10",
    }

    error = fault_of(Answer(status=0, output=f"LMI-BUILD {json.dumps(found)}\n"))

    assert error.code == "neuronx.no-library"
    assert "`libxml2.so.2`" in error.message
    assert "apt-get install libxml2" in error.hints[0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(status=127, output="docker: No such file"), "docker: No such file"),
        (Answer(status=1, output=""), "nothing"),
        (Answer(status=0, output="LMI-BUILD {broken\n"), "LMI-BUILD {broken"),
        (Answer(status=0, output='LMI-BUILD {"event": "done"}\n'), "done"),
    ],
)
def test_what_is_no_answer(answer: Answer, words: str) -> None:
    error = fault_of(answer, "the image `x`")

    assert error.code == "neuronx.absent"
    assert words in error.message


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('LMI-BUILD {"event": "graph", "total": 3}', {"event": "graph", "total": 3}),
        ("LMI-BUILD [1]", None),
        ('LMI-BUILD {"total": 3}', None),
        ("LMI-BUILD", None),
        ("Compiler status PASS", None),
        ("", None),
    ],
)
def test_lines_of_a_driver(line: str, found: dict[str, Any] | None) -> None:
    assert read_line(line) == found


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ("2.16.372.0", "2.16.372.0+4a9b2326", True),
        ("2.16.372.0", "2.16.372.1", False),
        ("2.16.372.0", "", False),
        ("2.16.372.0", "2.16.372", False),
    ],
)
def test_versions(wanted: str, found: str, same: object) -> None:
    assert same_version(wanted, found) is same
