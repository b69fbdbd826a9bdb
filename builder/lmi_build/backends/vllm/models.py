"""Which architectures each version of vLLM has a model for, read from data."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lmi_build.backends.vllm import PACKAGE
from lmi_build.backends.vllm.kernels import version_key
from lmi_build.catalog.tables import read_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "models.toml"


@cache
def _spans() -> Mapping[str, tuple[str, str]]:
    """Architecture to the version that has it first and the first without it."""
    tables = read_tables(FILE, package=PACKAGE)
    until = {name: at for at, names in tables["until"].items() for name in names}
    return {
        name: (at, until.get(name, ""))
        for at, names in tables["since"].items()
        for name in names
    }


def architectures(vllm: str) -> tuple[str, ...]:
    """What a version has a model for, by name."""
    here = version_key(vllm)
    return tuple(
        sorted(
            name
            for name, (since, until) in _spans().items()
            if version_key(since) <= here and not (until and version_key(until) <= here)
        )
    )


def first_version(architecture: str) -> str | None:
    """The first version read that has a model for it; None where none has."""
    span = _spans().get(architecture)
    return span[0] if span else None
