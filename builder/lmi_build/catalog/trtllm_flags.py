"""Options of `trtllm-build` by version, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from lmi_build.catalog.tables import read_row, read_tables

FILE = "trtllm_flags.toml"
READ = ("run", "interpolated", "documented")
KINDS = ("int", "float", "str", "switch", "enable", "choice")


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """
    One option, written `--name value`.

    Args:
        name: Without dashes.
        kind: `int`, `float` and `str` take a value; `choice` one of `choices`; `enable`
            takes `enable` or `disable`; `switch` takes none.
        default: What holds when it is not given; None where that depends on other
            options or on the model.
        choices: Values of a `choice`.
        many: Takes one value or more.
        deprecated: Read, with a warning or without effect.
        aliases: Other spellings of the name.
        note: What a caller must know.
    """

    name: str
    kind: str
    default: bool | int | float | str | None = None
    choices: tuple[str, ...] = ()
    many: bool = False
    deprecated: bool = False
    aliases: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlagRow:
    """
    The options of one version.

    Args:
        name: Row, such as `0.16`.
        version: Version of TensorRT-LLM whose code was read, or that is meant.
        read: How it is known, one of `READ`; the data file says what they mean.
        source: Which code.
        flags: Every option by name.
    """

    name: str
    version: str
    read: str
    source: str
    flags: Mapping[str, Flag] = field(default_factory=dict)


@cache
def flag_rows() -> Mapping[str, FlagRow]:
    """
    Every row by name, oldest first.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    tables = read_tables(FILE)
    rows: dict[str, FlagRow] = {}
    for name, table in tables.items():
        rows[name] = _row(name, table, rows)
    return MappingProxyType(rows)


def build_flags(row: str) -> Mapping[str, Flag]:
    """
    The options of one row, by name.

    Args:
        row: As `Release.flags` names it, such as `0.16`.

    Raises:
        KeyError: There is no such row.
    """
    return flag_rows()[row].flags


def _row(
    name: str, table: Mapping[str, Any], earlier: Mapping[str, FlagRow]
) -> FlagRow:
    """One row: what its base has, less what is removed, with what is added."""
    where = f"{FILE}: [{name}]"
    own = dict(table)
    base, removes = own.pop("base", ""), own.pop("removes", [])
    added = own.pop("flags", {})
    if base and base not in earlier:
        raise ValueError(f"{where}, `base` is {base!r}, which is no table before it")
    flags = dict(earlier[base].flags) if base else {}
    for gone in removes:
        if gone not in flags:
            raise ValueError(f"{where}, `removes` has {gone!r}, which {base!r} lacks")
        del flags[gone]
    for key, given in added.items():
        flags[key] = _flag(key, given, f"{where}, `{key}`")
        if base and flags[key] == earlier[base].flags.get(key):
            raise ValueError(f"{where}, `{key}` says what {base!r} says already")
    row = read_row(FlagRow, {"name": name, **own}, where=where)
    if row.read not in READ:
        raise ValueError(f"{where}, `read` is {row.read!r}; known: {list(READ)}")
    return FlagRow(
        name=name,
        version=row.version,
        read=row.read,
        source=row.source,
        flags=MappingProxyType(dict(sorted(flags.items()))),
    )


def _flag(name: str, table: Mapping[str, Any], where: str) -> Flag:
    flag = read_row(Flag, {"name": name, **table}, where=where)
    if flag.kind not in KINDS:
        raise ValueError(f"{where} has kind {flag.kind!r}; known: {list(KINDS)}")
    if bool(flag.choices) != (flag.kind == "choice"):
        raise ValueError(f"{where} is a {flag.kind} with choices {flag.choices}")
    if flag.default is not None and not fits(flag, flag.default):
        raise ValueError(f"{where} has default {flag.default!r}")
    return flag


def fits(flag: Flag, value: object) -> bool:
    """
    Whether an option takes a value.

    Args:
        flag: The option.
        value: A bool for a `switch`, else what is written after the name.
    """
    if flag.kind == "switch":
        return isinstance(value, bool)
    if flag.kind == "enable":
        return value in {"enable", "disable"}
    if flag.kind == "choice":
        return value in flag.choices
    if flag.kind == "str":
        return isinstance(value, str)
    number = (int,) if flag.kind == "int" else (int, float)
    return isinstance(value, number) and not isinstance(value, bool)
