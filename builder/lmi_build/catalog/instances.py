"""SageMaker instance types and their devices, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build.catalog.tables import read_row, read_tables, shown
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = "instances.toml"
ACCELERATORS = ("gpu", "neuron", "none")
# What SageMaker runs on an instance, by the operation's own word.
USES = ("processing", "training", "transform", "optimization", "endpoint")
MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """
    One instance type.

    Args:
        name: As SageMaker names it, such as `ml.g5.12xlarge`.
        accelerator: One of `ACCELERATORS`.
        device: The vendor's name of a device, such as `A10G`; empty without one.
        num_devices: GPUs or Neuron chips.
        device_memory_bytes: Memory of one device as EC2 gives it; a driver keeps a few
            hundred MB of it.
        cores_per_device: Parts a model can be split into: 1 for a GPU, the logical
            NeuronCores of a Neuron chip.
        compute_capability: Of a GPU, such as `8.6`; empty for others.
        num_vcpus: Virtual processors of the host.
        memory_bytes: Memory of the host.
        own_disk: A disk of the host's own holds the model.
        uses: Of `USES`, what SageMaker runs on it.
        source: Where the numbers were read.
        rates: Row of `devices.toml` with the device's peak rates; there need be none.
        network_gbps: Network of the host in Gbit/s, all cards together, at its best;
            None where it is not known.
        local_disk_gb: NVMe disks of the host together in GB, which jobs use instead of
            a volume; None without any.
    """

    name: str
    accelerator: str
    device: str
    num_devices: int
    device_memory_bytes: int
    cores_per_device: int
    compute_capability: str
    num_vcpus: int
    memory_bytes: int
    own_disk: bool
    uses: tuple[str, ...]
    source: str
    rates: str = ""
    network_gbps: float | None = None
    local_disk_gb: int | None = None

    @property
    def num_cores(self) -> int:
        """Parts a model can be split into on the whole instance."""
        return self.num_devices * self.cores_per_device


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """What all sizes of one family share, and what each has of its own."""

    accelerator: str
    source: str
    sizes: Mapping[str, tuple[int, ...]]
    uses: tuple[str, ...]
    other_uses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    device: str = ""
    device_memory_mib: int = 0
    cores_per_device: int = 0
    compute_capability: str = ""
    own_disk: bool = False
    rates: str = ""
    network_gbps: Mapping[str, int | float] = field(default_factory=dict)
    local_disk_gb: Mapping[str, int] = field(default_factory=dict)


_IN_USE: ContextVar[Mapping[str, Instance] | None] = ContextVar("_IN_USE", default=None)


def instances() -> Mapping[str, Instance]:
    """
    Every known instance type by name: those shipped, or those of `using`.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return _IN_USE.get() or shipped_instances()


@contextmanager
def using(rows: Mapping[str, Instance]) -> Iterator[None]:
    """
    Take other rows for known while a command runs.

    A user's own instances are asked for in rooms that know no catalogue but this
    (backends, a draft of a recipe); what they plan carries what it needs.

    Args:
        rows: By full name; those shipped as well, where they shall be known.
    """
    token = _IN_USE.set(rows)
    try:
        yield
    finally:
        _IN_USE.reset(token)


@cache
def shipped_instances() -> Mapping[str, Instance]:
    """
    Every instance type of the package by name, in the file's order.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    found: dict[str, Instance] = {}
    for name, table in read_tables(FILE).items():
        for row in family_rows(name, table, where=f"{FILE}: [{name}]"):
            found[row.name] = row
    return MappingProxyType(found)


def instance(name: str) -> Instance:
    """
    One instance type.

    Args:
        name: With or without `ml.`.

    Raises:
        KeyError: There is none of that name.
    """
    return instances()[name if name.startswith("ml.") else f"ml.{name}"]


def use_problem(name: str, use: str, *, path: str) -> Problem | None:
    """
    Why SageMaker will not run something on an instance, with what it runs it on.

    Args:
        name: Of an instance that the catalogue has.
        use: Of `USES`.
        path: Dotted path of what named the instance.

    Raises:
        KeyError: There is no such instance.
        ValueError: There is no such use.
    """
    if use not in USES:
        raise ValueError(f"`{use}` is none of {USES}")
    found = instance(name)
    if use in found.uses:
        return None
    likes = [
        row for row in instances().values() if row.accelerator == found.accelerator
    ]
    others = [row.name for row in likes if use in row.uses]
    has = ", ".join(word for word in found.uses if word != "endpoint")
    return Problem(
        code="compile.instance-use",
        message=f"SageMaker takes `{found.name}` for no {use} job; beside endpoints it"
        f" takes it for {has or 'nothing'}",
        path=path,
        hint=f"use `{others[0]}`, or another instance that it takes for {use}"
        if others
        else f"no instance with such a device is taken for {use}; compile in a training"
        " job",
        unsupported=True,
    )


def family_rows(
    name: str, table: Mapping[str, Any], *, where: str
) -> tuple[Instance, ...]:
    """
    The sizes of one family.

    Args:
        name: Such as `g5`.
        table: As in `instances.toml`; each size is [devices, vCPUs, host memory in
            GiB].
        where: File and table, for messages.

    Raises:
        ValueError: The table is wrong, with the place.
    """
    family = read_row(_Family, table, where=where)
    if family.accelerator not in ACCELERATORS:
        raise ValueError(
            f"{where}, `accelerator` is {shown(family.accelerator)}, not one of"
            f" {list(ACCELERATORS)}"
        )
    for words in (family.uses, *family.other_uses.values()):
        if unknown := sorted(set(words) - set(USES)):
            raise ValueError(f"{where}, `uses` has {unknown}; known: {sorted(USES)}")
    for key in ("other_uses", "network_gbps", "local_disk_gb"):
        if strange := sorted(set(getattr(family, key)) - set(family.sizes)):
            raise ValueError(f"{where}, `{key}` has {strange}, which are no sizes")
    return tuple(
        _size(name, size, family, where=f"{where}, `sizes.{size}`")
        for size in family.sizes
    )


def _size(name: str, size: str, family: _Family, *, where: str) -> Instance:
    """One size of a family, with every number in its range."""
    numbers = family.sizes[size]
    if len(numbers) != 3:  # noqa: PLR2004 - devices, vCPUs, GiB
        raise ValueError(f"{where} has {len(numbers)} numbers, not 3")
    num_devices, num_vcpus, memory_gib = numbers
    has_device = family.accelerator != "none"
    if num_vcpus < 1 or memory_gib < 1 or (num_devices > 0) is not has_device:
        raise ValueError(
            f"{where} is {list(numbers)}; it is [devices, vCPUs, GiB], with devices"
            " where `accelerator` says so, and none otherwise"
        )
    if has_device and (family.device_memory_mib < 1 or family.cores_per_device < 1):
        raise ValueError(
            f"{where} has devices, but `device_memory_mib` is"
            f" {family.device_memory_mib} and `cores_per_device`"
            f" {family.cores_per_device}"
        )
    return Instance(
        name=f"ml.{name}.{size}",
        accelerator=family.accelerator,
        device=family.device,
        num_devices=num_devices,
        device_memory_bytes=family.device_memory_mib * MIB,
        cores_per_device=family.cores_per_device,
        compute_capability=family.compute_capability,
        num_vcpus=num_vcpus,
        memory_bytes=memory_gib * GIB,
        own_disk=family.own_disk,
        uses=family.other_uses.get(size, family.uses),
        source=family.source,
        rates=family.rates or family.device,
        network_gbps=family.network_gbps.get(size),
        local_disk_gb=family.local_disk_gb.get(size),
    )
