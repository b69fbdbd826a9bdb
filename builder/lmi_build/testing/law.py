"""A law that a backend obeys, as a value."""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 - an alias of typing reads it
from dataclasses import dataclass
from typing import Generic, TypeVar

Subject = TypeVar("Subject")


class Broken(AssertionError):
    """A backend does not obey a law; says what was seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Law(Generic[Subject]):
    """
    What must be so, and of whom.

    Args:
        name: A slug that stays; what a plugin's author names to say which law is meant.
        says: The law in one sentence.
        hold: Raises `Broken` where it is not so.
        spared: Why it does not apply to a subject, by what that subject can do; empty
            where it applies.
    """

    name: str
    says: str
    hold: Callable[[Subject], None]
    spared: Callable[[Subject], str] = lambda _subject: ""


def require(condition: object, message: str) -> None:
    """
    Say that something is not so.

    Raises:
        Broken: The condition is false.
    """
    if not condition:
        raise Broken(message)


def broken_laws(laws: tuple[Law[Subject], ...], subject: Subject) -> tuple[str, ...]:
    """
    Names of the laws that a subject breaks; those that do not apply are left out.

    An error of another kind counts as broken: a law has to be able to look.
    """
    found = []
    for law in laws:
        if law.spared(subject):
            continue
        try:
            law.hold(subject)
        except Exception:  # noqa: BLE001 - whatever ends a law breaks it
            found.append(law.name)
    return tuple(found)
