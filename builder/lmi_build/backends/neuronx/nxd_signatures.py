"""Arguments of the configurations of NxD Inference and optimum-neuron, from data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx import PACKAGE
from lmi_build.catalog.tables import read_row, read_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.digest import JSONValue

FILE = "nxd_signatures.toml"
LIBRARIES = ("nxdi", "optimum")
KINDS: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list, tuple),
    "table": (dict,),
    "any": (bool, int, float, str, list, tuple, dict),
}
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Argument:
    """
    One argument of a configuration.

    Args:
        kind: One of `KINDS`.
        default: What it is when it is not given; None where that follows from another
            argument, or is None itself.
        follows: The argument that its default is taken from; empty for none.
        kept_as: Attribute that keeps it, where that has another name: what is written
            into the artifact under that name is not read back from there.
    """

    kind: str
    default: str | int | float | bool | None = None
    follows: str = ""
    kept_as: str = ""

    def takes(self, value: JSONValue) -> bool:
        """Whether a value is of its kind; a truth value is no number."""
        if isinstance(value, bool):
            return self.kind in ("bool", "any")
        return isinstance(value, KINDS[self.kind])


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """
    What a configuration takes at one version.

    Args:
        name: Row of the file, such as `nxdi-0.1.0`.
        source: Where it was read.
        arguments: By name.
        moe: Further ones of models with experts.
    """

    name: str
    source: str
    arguments: Mapping[str, Argument]
    moe: Mapping[str, Argument] = field(default_factory=dict)

    def known(self, *, moe: bool) -> Mapping[str, Argument]:
        """
        The arguments of a model.

        Args:
            moe: It has experts.
        """
        return {**self.arguments, **self.moe} if moe else self.arguments


@cache
def signatures() -> Mapping[str, Signature]:
    """
    Every row by name, in the file's order.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    found: dict[str, Signature] = {}
    for name, table in read_tables(FILE, package=PACKAGE).items():
        where = f"{FILE}: [{name}]"
        own = dict(table)
        base = found.get(own.pop("base", ""))
        if "base" in table and base is None:
            raise ValueError(f"{where} builds on `{table['base']}`, which is not above")
        removes = set(own.pop("removes", ()))
        parts = {
            part: _arguments(
                own.pop(part, {}),
                getattr(base, part, {}) if base else {},
                removes,
                f"{where}.{part}",
            )
            for part in ("arguments", "moe")
        }
        if set(own) != {"source"}:
            raise ValueError(f"{where} has {sorted(own)} beside its source")
        found[name] = Signature(name=name, source=own["source"], **parts)
    return MappingProxyType(found)


def signature(library: str, version: str) -> Signature:
    """
    What a version of a library takes: the last row that is not newer.

    Args:
        library: One of `LIBRARIES`.
        version: Such as `0.1.1`.

    Raises:
        KeyError: Every row of the library is newer.

    Example:
        >>> signature("nxdi", "0.1.1").name
        'nxdi-0.1.0'
    """
    wanted = version_key(version)
    last = None
    for row in signatures().values():
        kind, _, since = row.name.partition("-")
        if kind == library and version_key(since) <= wanted:
            last = row
    if last is None:
        raise KeyError(f"{library}-{version}")
    return last


def version_key(version: str) -> tuple[int, ...]:
    """Numbers of a version, in order; what names a build, after `+`, is left out."""
    public = version.partition("+")[0]
    return tuple(int(number) for number in _NUMBER.findall(public))


def _arguments(
    table: Mapping[str, Any],
    base: Mapping[str, Argument],
    removes: set[str],
    where: str,
) -> Mapping[str, Argument]:
    own = {
        name: read_row(Argument, entry, where=f"{where}.{name}")
        for name, entry in table.items()
    }
    for name, argument in own.items():
        if argument.kind not in KINDS:
            raise ValueError(f"{where}.{name} is of kind {argument.kind!r}")
    kept = {name: found for name, found in base.items() if name not in removes}
    return MappingProxyType({**kept, **own})
