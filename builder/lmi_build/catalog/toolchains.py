"""Toolchains: sets of packages that work together, read from data."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmi_build.digest import digest_json
from lmi_build.errors import ToolMissing, UsageInvalid
from lmi_build.text import did_you_mean, join_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FILE = Path(__file__).parent / "toolchains.toml"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!]+)")
# Characters of a digest that tell two sets of pins apart in a folder's name.
_DIGEST_LEN = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """
    One call of pip.

    Args:
        packages: `name==version`, each.
        no_deps: Whether their own requirements are left out.
    """

    packages: tuple[str, ...]
    no_deps: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolchain:
    """
    Packages that work together, for an environment of their own.

    Args:
        name: As `lmi-build toolchain` takes it.
        summary: One line.
        python: Python versions it can have, such as `3.11`.
        steps: What is installed, in this order.
        lock: Versions of everything that comes with them, as constraints.
        imports: Modules that must import before an environment counts.
        tried: Where the set was installed and used.
        notes: What a user should know.
    """

    name: str
    summary: str
    python: tuple[str, ...]
    steps: tuple[Step, ...]
    lock: tuple[str, ...]
    imports: tuple[str, ...]
    tried: str
    notes: str

    @property
    def pins(self) -> dict[str, str]:
        """Version of each package that is asked for; these enter stage keys."""
        pairs = (_pin(package) for step in self.steps for package in step.packages)
        return dict(sorted(pairs))

    @property
    def digest(self) -> str:
        """Names this set of pins: whatever can change what an environment holds."""
        document: dict[str, JSONValue] = {
            "steps": [[list(step.packages), step.no_deps] for step in self.steps],
            "lock": [*sorted(self.lock)],
        }
        return digest_json(document).partition(":")[2][:_DIGEST_LEN]

    @property
    def tools(self) -> dict[str, str]:
        """What a stage key holds: the pins, and the digest for all that is locked."""
        return {**self.pins, f"toolchain {self.name}": self.digest}


def _pin(package: str) -> tuple[str, str]:
    match = _PIN.fullmatch(package)
    if match is None:
        raise ValueError(f"`{package}` is not of the form `name==version`")
    return match["name"], match["version"]


def load_toolchains(extra: Path | None = None) -> dict[str, Toolchain]:
    """
    Every known toolchain by name.

    Args:
        extra: A file of the user's, of the same form; a toolchain in it replaces the
            shipped one of the same name.

    Raises:
        UsageInvalid: `toolchain.file`, when that file is not of this form.
    """
    known = _read(_FILE.read_text("utf-8"))
    if extra is None:
        return known
    try:
        return {**known, **_read(extra.read_text("utf-8"))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageInvalid(
            f"{extra} cannot be read as a list of toolchains"
            f" ({type(error).__name__}: {error})",
            code="toolchain.file",
            hints=("correct the file that `LMI_BUILD_TOOLCHAINS` names, or unset it",),
        ) from error


def _read(text: str) -> dict[str, Toolchain]:
    tables: Mapping[str, Any] = tomllib.loads(text)
    return {name: _toolchain(name, table) for name, table in tables.items()}


def _toolchain(name: str, table: Mapping[str, Any]) -> Toolchain:
    if not _NAME.fullmatch(name):
        raise ValueError(f"`{name}` is not a name")
    steps = tuple(
        Step(packages=tuple(row["packages"]), no_deps=bool(row.get("no_deps")))
        for row in table["steps"]
    )
    rest = {k: v for k, v in table.items() if k != "steps"}
    rest |= {k: tuple(rest.get(k, ())) for k in ("python", "lock", "imports")}
    rest = {"tried": "", "notes": "", **rest}
    toolchain = Toolchain(name=name, steps=steps, **rest)
    for package in toolchain.lock:
        _pin(package)
    if not toolchain.pins or not toolchain.imports or not toolchain.python:
        raise ValueError(f"[{name}] needs `steps`, `imports` and `python`")
    return toolchain


def find_toolchain(name: str, known: Mapping[str, Toolchain]) -> Toolchain:
    """
    A toolchain by name.

    Raises:
        ToolMissing: `toolchain.unknown`, with the nearest name.
    """
    if name in known:
        return known[name]
    near = did_you_mean(name, known)
    raise ToolMissing(
        f"no toolchain `{name}`; there is {join_words(tuple(known), last='and')}",
        code="toolchain.unknown",
        hints=(
            f"did you mean `{near}`?" if near else "run `lmi-build toolchain list`",
        ),
    )
