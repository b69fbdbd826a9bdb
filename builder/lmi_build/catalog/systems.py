"""Every serving system of the field, what it loads and offers, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from lmi_build.catalog.tables import read_row, read_tables

FILE = "systems.toml"
DEVICES = ("gpu", "neuron", "cpu")
# From best to worst: new releases, fixes only, no more releases.
LIVES = ("maintained", "maintenance", "ended")
KINDS = ("server", "library")
TECHNIQUES = (
    "none",
    "gptq",
    "awq",
    "smoothquant",
    "int8",
    "rtn",
    "fp8",
    "compressed-tensors",
    "bitsandbytes",
    "gguf",
)
FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "lora": "LoRA adapters chosen per request",
        "logprobs": "log probabilities of the tokens it writes",
        "streaming": "tokens are sent as they are made",
        "continuous-batching": "requests join and leave a running batch",
        "tensor-parallel": "a layer split over several devices",
        "inference-components": "several models on one SageMaker endpoint",
        "chat": "an API of chat messages, with the model's template",
    }
)
# Every family of the list: what a system says of itself, not a list it gives.
EVERY = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """
    Where a value was read.

    Args:
        text: Project, release or commit, and file.
        date: Of that revision; of the reading where `text` says so. Year-month-day.
    """

    text: str
    date: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    """
    What is still published.

    Args:
        status: One of `LIVES`.
        version: Newest version or image that can be had.
        note: What was announced.
        source: Where that was read.
    """

    status: str
    version: str
    note: str
    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Port:
    """
    A system on one kind of device.

    Args:
        device: One of `DEVICES`.
        families: Families of models it loads, each with where that was read.
        techniques: Quantizations it reads or makes, of `TECHNIQUES`.
        features: Of `FEATURES`.
        source: Where the rest was read.
        only: Techniques and features that it has for some families alone.
        excluded: Families that a source says it does not load, whatever its own lists.
        compiled: Whether it serves graphs of fixed bounds, compiled ahead of time.
        instances: Families of instances that it runs on, such as `inf2`; empty for
            all that have the device.
        min_compute: Least compute capability of a GPU; empty where none is named.
        technique_compute: The same for single techniques.
        container: SageMaker's image that has it; empty where one has to be made.
        backend: lmi-build's backend that builds for it; empty where none does.
        built: Families that it builds; empty for all that the system loads.
        release: The row of the catalogue that such a recipe names; empty for the
            newest.
    """

    device: str
    families: Mapping[str, Source]
    techniques: Mapping[str, Source]
    features: Mapping[str, Source]
    source: Source
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    excluded: Mapping[str, Source] = field(default_factory=dict)
    compiled: bool = False
    instances: tuple[str, ...] = ()
    min_compute: str = ""
    technique_compute: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    backend: str = ""
    built: tuple[str, ...] = ()
    release: str = ""

    def loads(self, family: str) -> bool:
        """Whether it says that it loads a family."""
        if family in self.excluded:
            return False
        return family in self.families or EVERY in self.families

    def builds(self, family: str) -> bool:
        """Whether lmi-build builds for it, for a family or, if empty, for any."""
        known = not family or not self.built or family in self.built
        return bool(self.backend) and known

    def has(self, word: str, family: str) -> bool:
        """
        Whether it has a technique or a feature, for a family.

        Args:
            word: Of `TECHNIQUES` or `FEATURES`.
            family: Of the table; empty for any.
        """
        if word not in self.techniques and word not in self.features:
            return False
        return not family or word not in self.only or family in self.only[word]


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """
    One serving system.

    Args:
        name: As it is named here, such as `tensorrt-llm`.
        title: As its makers write it.
        kind: `server`, or `library` that a server has to be written around.
        life: What is still published.
        last_resort: Whether its own guide says to take another where one can.
        otherwise: What to do where lmi-build does not build for it.
        ports: One for each kind of device.
    """

    name: str
    title: str
    kind: str
    life: Life
    ports: tuple[Port, ...]
    last_resort: bool
    otherwise: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Port:
    """A port as the file has it; lists stand under the name of their source."""

    device: str
    families: Mapping[str, tuple[str, ...]]
    techniques: Mapping[str, tuple[str, ...]]
    features: Mapping[str, tuple[str, ...]]
    source: str
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    excluded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    compiled: bool = False
    instances: tuple[str, ...] = ()
    min_compute: str = ""
    technique_compute: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    backend: str = ""
    built: tuple[str, ...] = ()
    release: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _System:
    """A system as the file has it, without its nested tables."""

    title: str
    kind: str
    otherwise: str
    last_resort: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Life:
    """A life as the file has it."""

    status: str
    version: str
    note: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Systems:
    """
    The whole table.

    Args:
        systems: By name.
        families: `model_type` to the names that `architectures` may have for it.
        sources: By their short names.
    """

    systems: Mapping[str, System] = field(default_factory=dict)
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)


@cache
def load_systems() -> Systems:
    """
    Every system, family and source.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return parse_systems(read_tables(FILE), FILE)


def parse_systems(tables: Mapping[str, Any], where: str) -> Systems:
    """
    The table from its parsed text.

    Args:
        tables: `sources`, `families` and `systems`.
        where: What messages call it.

    Raises:
        ValueError: A key, a word or a source is unknown, and in which row.
    """
    sources = {
        name: read_row(Source, table, where=f"{where}: [sources.{name}]")
        for name, table in tables["sources"].items()
    }
    families = {name: tuple(found) for name, found in tables["families"].items()}
    systems = {
        name: _system(name, table, sources, families, f"{where}: [systems.{name}]")
        for name, table in tables["systems"].items()
    }
    return Systems(
        systems=MappingProxyType(systems),
        families=MappingProxyType(families),
        sources=MappingProxyType(sources),
    )


def _system(
    name: str,
    table: Mapping[str, Any],
    sources: Mapping[str, Source],
    families: Mapping[str, tuple[str, ...]],
    where: str,
) -> System:
    own = dict(table)
    life = read_row(_Life, own.pop("life", {}), where=f"{where}, `life`")
    shared = {"families": own.pop("families", {})}
    ports = [
        read_row(_Port, {**shared, **port}, where=where)
        for port in own.pop("ports", ())
    ]
    row = read_row(_System, own, where=where)
    _known([row.kind], KINDS, f"{where}, `kind`")
    _known([life.status], LIVES, f"{where}, `life.status`")
    _known([life.source], sources, f"{where}, `life.source`")
    if not ports or len({port.device for port in ports}) != len(ports):
        raise ValueError(f"{where} needs one port for each of its devices")
    return System(
        name=name,
        title=row.title,
        kind=row.kind,
        life=Life(
            status=life.status,
            version=life.version,
            note=life.note,
            source=sources[life.source],
        ),
        ports=tuple(_port(port, sources, families, where) for port in ports),
        last_resort=row.last_resort,
        otherwise=row.otherwise,
    )


def _port(
    port: _Port,
    sources: Mapping[str, Source],
    families: Mapping[str, tuple[str, ...]],
    where: str,
) -> Port:
    _known([port.device], DEVICES, f"{where}, `device`")
    _known([port.source], sources, f"{where}, `source`")
    words = _words(port)
    _known(port.technique_compute, words, f"{where}, `technique_compute`")
    _known(port.only, words, f"{where}, `only`")
    for names in (port.built, *port.only.values()):
        _known(names, families, f"{where}, `only` or `built`")
    every = {*families, EVERY}
    return Port(
        device=port.device,
        families=_sourced(port.families, every, sources, f"{where}, `families`"),
        techniques=_sourced(
            port.techniques, set(TECHNIQUES), sources, f"{where}, `techniques`"
        ),
        features=_sourced(
            port.features, set(FEATURES), sources, f"{where}, `features`"
        ),
        source=sources[port.source],
        only=port.only,
        excluded=_sourced(port.excluded, every, sources, f"{where}, `excluded`"),
        compiled=port.compiled,
        instances=port.instances,
        min_compute=port.min_compute,
        technique_compute=port.technique_compute,
        container=port.container,
        backend=port.backend,
        built=port.built,
        release=port.release,
    )


def _words(port: _Port) -> set[str]:
    """The techniques and features that a port has."""
    lists = (*port.techniques.values(), *port.features.values())
    return {name for names in lists for name in names}


def _sourced(
    lists: Mapping[str, tuple[str, ...]],
    words: set[str],
    sources: Mapping[str, Source],
    where: str,
) -> Mapping[str, Source]:
    """Every word of the lists with its source; a word stands once."""
    found: dict[str, Source] = {}
    for source, names in lists.items():
        _known([source], sources, where)
        _known(names, words, where)
        for name in names:
            if name in found:
                raise ValueError(f"{where} has {name!r} twice")
            found[name] = sources[source]
    return MappingProxyType(found)


def _known(words: Any, known: Any, where: str) -> None:
    unknown = sorted(set(words) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown {unknown}")
