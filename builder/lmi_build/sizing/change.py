"""
The nearest change that makes a model fit.

Changes are looked for in the order of what they cost: less at once, shorter, fewer
bits, more devices of the same machine, another machine. Each is proven by `fit` before
it is named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmi_build.sizing.fit import FITS, fit, largest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmi_build.sizing.fit import Place
    from lmi_build.sizing.memory import Subject
    from lmi_build.values.bounds import Bounds

BOUND_PATHS: Mapping[str, str] = {
    "batch": "bounds.max_batch_size",
    "input": "bounds.max_input_len",
    "output": "bounds.max_output_len",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """
    One change after which everything fits for certain.

    Args:
        path: What of a recipe to change.
        value: To what.
        text: The same for people.
    """

    path: str
    value: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """
    Something else that could be done.

    Args:
        path: What of a recipe it changes.
        value: To what.
        subject: The model then.
        place: The place then.
    """

    path: str
    value: str
    subject: Subject
    place: Place


def lowered(path: str, now: int, found: int) -> Change:
    """A smaller bound."""
    return Change(
        path=path, value=str(found), text=f"lower `{path}` from {now} to {found}"
    )


def changes(
    subject: Subject, bounds: Bounds, place: Place, options: Sequence[Option] = ()
) -> Iterator[Change]:
    """
    Yield every single change that fits, cheapest first.

    Args:
        subject: The model that does not fit, or not for certain.
        bounds: What is served.
        place: Where.
        options: Other forms of the model and other places, cheapest first.
    """
    for question, path in BOUND_PATHS.items():
        found = largest(question, subject, bounds, place).certain
        field = path.removeprefix("bounds.")
        now = getattr(bounds, field)
        if not 0 < found < now:
            continue
        smaller = replace(bounds, **{field: found})
        if fit(subject, smaller, place).verdict == FITS:
            yield lowered(path, now, found)
    for option in options:
        if fit(option.subject, bounds, option.place).verdict == FITS:
            yield Change(
                path=option.path,
                value=option.value,
                text=f"set `{option.path}: {option.value}`",
            )
