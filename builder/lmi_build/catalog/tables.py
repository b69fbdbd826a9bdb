"""Data files of the catalogue, read strictly: a fault names its file and its table."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib.resources import files
from types import MappingProxyType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from lmi_build.digest import digest_bytes, digest_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import TypeAlias

    from _typeshed import DataclassInstance

    from lmi_build.digest import Digest

    # A key of a row, its words, and the words that it may have.
    Words: TypeAlias = tuple[str, Iterable[str], Collection[str]]

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Row = TypeVar("Row", bound="DataclassInstance")
Image = TypeVar("Image", bound="Published")
_UNIONS = (UnionType, Union)
_SCALARS = (str, int, float, bool)
_WORDS = {
    str: "a text in quotes",
    int: "a whole number",
    float: "a number with a point",
    bool: "true or false",
}


class Published(Protocol):
    """A row about an image of a container."""

    @property
    def container(self) -> str:
        """Which container it is an image of."""

    @property
    def published(self) -> bool:
        """Whether it can be pulled."""


def read_tables(
    name: str, *, package: str = "lmi_build.catalog"
) -> dict[str, dict[str, Any]]:
    """
    The tables of one data file, in its order.

    Args:
        name: File name, such as `releases.toml`.
        package: Where it lies.

    Raises:
        ValueError: The file has something beside tables; a fault of the package.
    """
    text = files(package).joinpath(name).read_text("utf-8")
    return parse_tables(text, name)


def catalog_digest(package: str = "lmi_build.catalog") -> Digest:
    """Name the whole catalogue: every data file that is shipped with it."""
    rows = [
        (path.name, digest_bytes(data), len(data))
        for path in files(package).iterdir()
        if path.name.endswith(".toml")
        for data in (path.read_bytes(),)
    ]
    return digest_tree(rows)


def parse_tables(text: str, name: str) -> dict[str, dict[str, Any]]:
    """
    The tables of one text, in its order.

    Args:
        text: TOML.
        name: What messages call it.

    Raises:
        ValueError: It is no TOML, or has something beside tables.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise ValueError(f"{name}: {fault}") from fault
    loose = [key for key, table in tables.items() if not isinstance(table, dict)]
    if loose:
        raise ValueError(f"{name} has {loose} outside of tables")
    return tables


def read_rows(cls: type[Row], name: str, *, package: str) -> Mapping[str, Row]:
    """
    Every table of a data file as a dataclass, by its name.

    Args:
        cls: A dataclass; what `read_row` knows.
        name: File name.
        package: Where it lies.

    Raises:
        ValueError: As for `read_tables` and `read_row`.
    """
    return MappingProxyType(
        {
            key: read_row(cls, table, where=f"{name}: [{key}]")
            for key, table in read_tables(name, package=package).items()
        }
    )


def read_named_rows(
    cls: type[Row], name: str, *, words: Callable[[Row], Iterable[Words]] | None = None
) -> Mapping[str, Row]:
    """
    Every table of a data file of this package as a dataclass that knows its name.

    Args:
        cls: A dataclass with a field `name`; what `read_row` knows.
        name: File name.
        words: What is held against known words; None for nothing.

    Raises:
        ValueError: As for `read_tables`, `read_row` and `refuse_unknown`.
    """
    return MappingProxyType(
        {
            key: read_named_row(cls, key, table, where=f"{name}: [{key}]", words=words)
            for key, table in read_tables(name).items()
        }
    )


def read_named_row(
    cls: type[Row],
    name: str,
    table: Mapping[str, Any],
    *,
    where: str,
    words: Callable[[Row], Iterable[Words]] | None = None,
) -> Row:
    """
    A dataclass from a table and the table's name.

    Args:
        cls: A dataclass with a field `name`; what `read_row` knows.
        name: Of the table.
        table: The other fields by name.
        where: File and table, for messages.
        words: What is held against known words; None for nothing.

    Raises:
        ValueError: As for `read_row` and `refuse_unknown`.
    """
    row = read_row(cls, {"name": name, **table}, where=where)
    refuse_unknown(where, *(words(row) if words is not None else ()))
    return row


def newest_published(rows: Mapping[str, Image], container: str) -> Image:
    """
    The first row of a container whose image can be pulled.

    Args:
        rows: By name, newest first.
        container: Which container.

    Raises:
        KeyError: No published row has that container.
    """
    for found in rows.values():
        if found.container == container and found.published:
            return found
    raise KeyError(container)


def read_row(cls: type[Row], table: Mapping[str, Any], *, where: str) -> Row:
    """
    A dataclass from a table, with every value of its declared type.

    Known types are `str`, `int`, `float`, `bool`, a union of them, `None` in a union
    (for a key that is left out), `tuple[X, ...]` and `Mapping[str, X]`.

    Args:
        cls: A dataclass.
        table: Its fields by name.
        where: File and table, for messages.

    Raises:
        ValueError: A key is unknown or missing, or a value has another type.
    """
    hints = get_type_hints(cls)
    known = {item.name: item for item in fields(cls)}
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; known: {sorted(known)}")
    missing = [
        name
        for name, item in known.items()
        if name not in table
        and item.default is MISSING
        and item.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{where} lacks {missing}")
    values = {
        name: _typed(value, hints[name], f"{where}, `{name}`")
        for name, value in table.items()
    }
    return cls(**values)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """A value of the declared type; lists become tuples, tables read-only."""
    origin = get_origin(hint)
    if origin is tuple and isinstance(value, list):
        item = get_args(hint)[0]
        return tuple(_typed(entry, item, where) for entry in value)
    if origin is Mapping and isinstance(value, dict):
        item = get_args(hint)[1]
        return MappingProxyType(
            {key: _typed(entry, item, f"{where}.{key}") for key, entry in value.items()}
        )
    kinds = get_args(hint) if origin in _UNIONS else (hint,)
    allowed = [kind for kind in kinds if kind in _SCALARS]
    # bool is a subclass of int, and neither is meant where the other is declared.
    if type(value) in allowed:
        return value
    raise ValueError(f"{where} is {shown(value)}, not {_words(hint)}")


def shown(value: Any) -> str:
    """A value as TOML spells it, near enough: quotes, brackets and `true`."""
    return json.dumps(value, default=str)


def _words(hint: Any) -> str:
    """What a value may be, in words that a file's author knows."""
    if hint in _WORDS:
        return _WORDS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        return f"a list, each entry {_words(arguments[0])}"
    if origin is Mapping:
        return f"a table, each value {_words(arguments[1])}"
    # What may be left out is left out, never written; and a number may be whole.
    kinds = [kind for kind in arguments if kind is not type(None)]
    kinds = [kind for kind in kinds if kind is not int or float not in kinds]
    return " or ".join(_words(kind) for kind in kinds)


def refuse_unknown(where: str, *rows: Words) -> None:
    """
    Hold words of a row against those that are known.

    Args:
        where: File and table, for the error.
        rows: Key, its words, and the words that it may have.

    Raises:
        ValueError: A word is another one; it names the key and what is known.
    """
    for key, words, known in rows:
        if wrong := sorted(set(words) - set(known)):
            raise ValueError(f"{where}, `{key}` has {wrong}; known: {list(known)}")
