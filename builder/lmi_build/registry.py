"""
Providers by name.

Built-in providers and plugins are found through the same entry points; a provider's
module is imported when its name is asked for, and never its toolchain.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from lmi_build.errors import Unsupported
from lmi_build.spi import Backend, Quantizer
from lmi_build.text import did_you_mean, join_words

if TYPE_CHECKING:
    from collections.abc import Mapping

QUANTIZERS = "lmi_build.quantizers"
BACKENDS = "lmi_build.backends"


@cache
def _all() -> Any:
    """
    Every entry point there is; looking for them reads every package's metadata.

    Python 3.10 and 3.11 return another class than 3.12; all of them can `select`.
    """
    return entry_points()


@cache
def _found(group: str) -> Mapping[str, EntryPoint]:
    return {point.name: point for point in _all().select(group=group)}


def names(group: str) -> tuple[str, ...]:
    """Names of the installed providers of a group, sorted."""
    return tuple(sorted(_found(group)))


def quantizer(name: str) -> Quantizer:
    """
    A quantizer by the name a recipe gives.

    Raises:
        Unsupported: No installed package offers it.
    """
    provider = _load(QUANTIZERS, name)
    if not isinstance(provider, Quantizer):
        raise _broken(QUANTIZERS, name, "Quantizer")
    return provider


def backend(name: str) -> Backend:
    """
    A backend by the name a recipe gives.

    Raises:
        Unsupported: No installed package offers it.
    """
    provider = _load(BACKENDS, name)
    if not isinstance(provider, Backend):
        raise _broken(BACKENDS, name, "Backend")
    return provider


def _load(group: str, name: str) -> object:
    point = _found(group).get(name)
    if point is None:
        near = did_you_mean(name, names(group))
        hint = f"did you mean `{near}`?" if near else f"use {join_words(names(group))}"
        raise Unsupported(
            f"no provider `{name}` is installed;"
            f" there is {join_words(names(group), last='and') or 'none'}",
            code="provider.unknown",
            hints=(hint,),
        )
    return point.load()


def _broken(group: str, name: str, protocol: str) -> Unsupported:
    return Unsupported(
        f"the plugin `{name}` of {group} does not implement `{protocol}`",
        code="provider.broken",
        hints=("update the plugin, or remove it",),
    )
