"""Model types as each loader of a Neuron release knows them, read from data."""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - `read_row` resolves it
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx import PACKAGE
from lmi_build.catalog.neuron_releases import LOADERS
from lmi_build.catalog.tables import read_row, read_tables
from lmi_build.errors import Problem
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.catalog.neuron_releases import NeuronRelease

FILE = "models.toml"
# Where a loader takes the number of positions from.
POSITIONS = ("argument", "config")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderModel:
    """
    How one loader has one model type.

    Args:
        since: First version of the loader's library that has it, which stands for all
            later ones.
        until: First version that has it no more; empty for never.
        model_class: Dotted path of its class; empty where the loader finds it alone.
        auto_class: The class that the loader's automatic one chooses, where that is
            another one.
        continuous: The server batches its requests continuously; else every request
            that joins restarts the batch.
        positions: One of `POSITIONS`: whether the class takes `n_positions`, or has
            them from the model's own `config.json`.
        serialized: Its graphs can be saved and loaded again.
        note: What else matters.
    """

    since: str
    until: str = ""
    model_class: str = ""
    auto_class: str = ""
    continuous: bool = False
    positions: str = "argument"
    serialized: bool = True
    note: str = ""

    def reached(self, version: str) -> bool:
        """Whether a version of the loader's library has it; an empty one never."""
        if not version or _key(version) < _key(self.since):
            return False
        return not self.until or _key(version) < _key(self.until)


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronModel:
    """
    One model type.

    Args:
        name: `model_type` of `config.json`, such as `llama`.
        architectures: Entries of `architectures` there that mean it.
        grouped: Its key and value heads may be fewer than its query heads.
        loaders: How each loader has it, by the names of `LOADERS`.
    """

    name: str
    architectures: tuple[str, ...] = ()
    grouped: bool = False
    loaders: Mapping[str, LoaderModel]

    def supported(self, loader: str, release: NeuronRelease) -> bool:
        """
        Whether a release loads it with a loader, compiled ahead of time.

        Args:
            loader: One of `LOADERS`.
            release: The container that will serve.
        """
        row = self.loaders.get(loader)
        return (
            row is not None
            and loader in release.loaders
            and row.serialized
            and row.reached(library_version(loader, release))
        )


def library_version(loader: str, release: NeuronRelease) -> str:
    """
    Version of the library that a loader stands on, empty where a release lacks it.

    Args:
        loader: One of `LOADERS`.
        release: Whose image.
    """
    versions = {
        "tnx": release.transformers_neuronx,
        "optimum": release.optimum_neuron,
        "nxdi": release.nxdi,
        "trace": release.torch_neuronx,
    }
    return versions[loader]


@cache
def neuron_models() -> Mapping[str, NeuronModel]:
    """
    Every model type by its name.

    Raises:
        ValueError: The data file has a wrong key; a fault of the package.
    """
    tables = read_tables(FILE, package=PACKAGE)
    return MappingProxyType({name: _model(name, row) for name, row in tables.items()})


def known(loader: str, release: NeuronRelease) -> str:
    """
    The model types that a release loads with a loader, as a list in words.

    Args:
        loader: One of `LOADERS`.
        release: The container that will serve.
    """
    names = [
        name for name, row in neuron_models().items() if row.supported(loader, release)
    ]
    return join_words(sorted(names), last="and")


def model_problems(
    model_type: str, loader: str, release: NeuronRelease
) -> Iterator[Problem]:
    """
    Why a loader of a release cannot take a model type.

    Args:
        model_type: As `config.json` has it.
        loader: One of `LOADERS`.
        release: The container that will serve.
    """
    row = neuron_models().get(model_type)
    if row is not None and row.supported(loader, release):
        return
    reason = f"`{release.name}` has no `{model_type}` in its loader `{loader}`"
    if loader not in release.loaders:
        reason = f"`{release.name}` has no loader `{loader}`"
    elif row is not None and loader in row.loaders:
        found = row.loaders[loader]
        if not found.serialized:
            reason = f"graphs of `{model_type}` cannot be saved by `{loader}`"
        elif not found.reached(library_version(loader, release)):
            reason += f", which came with version {found.since}"
            if found.until:
                reason += f" and went with {found.until}"
    yield Problem(
        code="neuronx.architecture",
        message=reason,
        path="compile.loader",
        hint=_elsewhere(row, loader, release),
        unsupported=True,
    )


def _elsewhere(row: NeuronModel | None, loader: str, release: NeuronRelease) -> str:
    """Another loader of the release, another release, or what the loader has."""
    from lmi_build.catalog.neuron_releases import neuron_releases

    if row is not None:
        here = [other for other in release.loaders if row.supported(other, release)]
        if here:
            return f"set `compile.loader: {here[0]}`"
        for other in neuron_releases().values():
            for name in other.loaders:
                if other.published and row.supported(name, other):
                    return (
                        f"set `compile.release: {other.name}` and"
                        f" `compile.loader: {name}`"
                    )
    names = known(loader, release)
    return f"it loads {names}" if names else "choose another release"


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBER.findall(version))


def _model(name: str, table: Mapping[str, Any]) -> NeuronModel:
    where = f"{FILE}: [{name}]"
    own = dict(table)
    loaders = {
        loader: _loader(own.pop(loader), f"{FILE}: [{name}.{loader}]")
        for loader in LOADERS
        if loader in own
    }
    if unknown := sorted(set(own) - {"architectures", "grouped"}):
        raise ValueError(f"{where} has unknown keys {unknown}")
    if not loaders:
        raise ValueError(f"{where} has none of {list(LOADERS)}")
    return NeuronModel(
        name=name,
        architectures=tuple(own.get("architectures", ())),
        grouped=bool(own.get("grouped", False)),
        loaders=MappingProxyType(loaders),
    )


def _loader(table: Mapping[str, Any], where: str) -> LoaderModel:
    row = read_row(LoaderModel, table, where=where)
    if row.positions not in POSITIONS:
        raise ValueError(f"{where}, `positions` is {row.positions!r}")
    for version in filter(None, (row.since, row.until)):
        if not _key(version):
            raise ValueError(f"{where} has `{version}`, which is no version")
    return row
