"""Why a stage is not what it was: the fields of two key documents that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.digest import JSONValue


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """
    One field that changed a key.

    Args:
        path: Dotted path in the key document, such as `params.bits`.
        old: The former value; None when the field is new.
        new: The present value; None when the field is gone.
    """

    path: str
    old: JSONValue
    new: JSONValue


def diff(old: JSONValue, new: JSONValue, path: str = "") -> Iterator[Change]:
    """
    Every leaf that differs, in path order.

    A changed input key is one leaf: the stage that it names explains itself.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            dotted = f"{path}.{name}" if path else name
            yield from diff(old.get(name), new.get(name), dotted)
    elif _rows(old) and _rows(new):
        yield from diff(_by_name(old), _by_name(new), path)
    elif old != new:
        yield Change(path=path, old=old, new=new)


def _rows(value: JSONValue) -> bool:
    """Whether a value is a list of objects that name themselves, such as files."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(row, Mapping) and "path" in row for row in value)
    )


def _by_name(rows: JSONValue) -> JSONValue:
    assert isinstance(rows, Sequence)  # noqa: S101 - `_rows` said so
    return {str(row["path"]): row for row in rows if isinstance(row, Mapping)}
