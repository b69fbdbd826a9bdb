"""Which Neuron toolchain answers, and whether it is the release's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.errors import ToolMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.spi import Answer

MARK = "LMI-BUILD "
INDEX = "https://pip.repos.neuron.amazonaws.com"
_NOT_RUN = (125, 126, 127)
# What PyPI's packages of these names raise when they are imported. That of the compiler
# cannot even be: its only module is called `neuronx-cc`.
_STUB = "WRONG PACKAGE"
_BROKEN = "neuronx.broken"


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolchain:
    """
    The Neuron packages that answered.

    Args:
        versions: Their versions by distribution.
        prefix: The folder they lie in.
        python: Version of their Python, such as `3.10`.
    """

    versions: Mapping[str, str]
    prefix: str
    python: str


def read_line(line: str) -> dict[str, Any] | None:
    """What a driver says in a line; None for every other line."""
    if not line.startswith(MARK):
        return None
    try:
        found = json.loads(line[len(MARK) :])
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def same_version(wanted: str, found: str) -> bool:
    """Whether two versions are one, but for a build's mark after `+`."""
    return wanted.partition("+")[0] == found.partition("+")[0]


def check_toolchain(
    answer: Answer, wanted: Mapping[str, str], *, where: str
) -> Toolchain:
    """
    The toolchain that answered a driver's `probe`.

    Args:
        answer: What it printed.
        wanted: The version that each distribution must have.
        where: What messages call the toolchain.

    Raises:
        ToolMissing: `neuronx.absent`, `neuronx.stub`, `neuronx.broken`,
            `neuronx.wrong-version`, `neuronx.no-compiler` or `neuronx.no-library`.
    """
    found = _found(answer)
    code, fault, hint = _fault(found, answer, wanted, where)
    if found is None or code:
        pins = " ".join(f"{name}=={text}" for name, text in sorted(wanted.items()))
        get = (
            "use the image of the release, or install"
            f" `pip install --extra-index-url {INDEX} {pins}`"
        )
        raise ToolMissing(fault, code=code, hints=tuple(filter(None, (hint, get))))
    return Toolchain(
        versions={name: str(text) for name, text in found["versions"].items()},
        prefix=str(found["prefix"]),
        python=str(found["python"]),
    )


def _found(answer: Answer) -> dict[str, Any] | None:
    """What the probe says; libraries print around it."""
    for line in answer.output.splitlines():
        found = read_line(line)
        if found is not None and found["event"] == "toolchain":
            return found
    return None


def _fault(
    found: Mapping[str, Any] | None,
    answer: Answer,
    wanted: Mapping[str, str],
    where: str,
) -> tuple[str, str, str]:
    """Code, message and hint of what is wrong with a toolchain; empty for nothing."""
    if found is None:
        said = answer.output.strip().splitlines()[-1:] or ["nothing"]
        words = f"{where} did not answer (exit status {answer.status}): {said[0]}"
        pull = answer.status in _NOT_RUN and where.startswith("the image")
        hint = "log in to its registry and run `docker pull` first" if pull else ""
        return "neuronx.absent", words, hint
    faults = [
        _package_fault(name, version, found, where) for name, version in wanted.items()
    ]
    # One that cannot be imported may only lack another that is missing itself.
    faults.sort(key=lambda fault: fault[0] == _BROKEN)
    for code, words, hint in faults:
        if code:
            return code, words, hint
    if not found["compiler"]:
        words = f"{where} has no `neuronx-cc` on its PATH"
        return "neuronx.no-compiler", words, "add the folder of its scripts to PATH"
    if found["libraries"]:
        names = ", ".join(f"`{name}`" for name in found["libraries"])
        words = f"the compiler in {where} lacks the system library {names}"
        hint = "install it, such as `apt-get install libxml2`; the compiler would only"
        return "neuronx.no-library", words, f"{hint} say so after minutes"
    return "", "", ""


def _package_fault(
    name: str, wanted: str, found: Mapping[str, Any], where: str
) -> tuple[str, str, str]:
    version, error = found["versions"].get(name, ""), found["errors"].get(name, "")
    absent = error.startswith("ModuleNotFoundError")
    if not version and (absent or not error):
        words = f"{where} has no {name}; the release has {wanted}"
        return "neuronx.absent", words, ""
    empty = name in found["missing_symbols"] or _itself_absent(name, error)
    wrong = empty and not same_version(wanted, version)
    if wrong or _STUB in error:
        words = (
            f"{name} {version} in {where} is a placeholder without a library: PyPI has"
            " only that"
        )
        return "neuronx.stub", words, f"Neuron's own index has it: {INDEX}"
    if not same_version(wanted, version):
        words = (
            f"the release has {name} {wanted}, {where} has {version}; graphs of another"
            " version would not be found again when the model is loaded"
        )
        return "neuronx.wrong-version", words, ""
    if error or empty:
        words = f"{name} {version} in {where} cannot be used: "
        hint = "its own dependencies must be those of the release too"
        return _BROKEN, words + (error or "it lacks its own names"), hint
    return "", "", ""


def _itself_absent(name: str, error: str) -> bool:
    """A package that is installed and whose own module is not there."""
    module = {"neuronx-cc": "neuronxcc"}.get(name, name.replace("-", "_"))
    return error.startswith("ModuleNotFoundError") and f"'{module}'" in error
