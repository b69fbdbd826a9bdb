"""SageMaker instance types and their devices, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - read_row reads annotations
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from lmi_build.catalog.tables import read_row, read_tables
from lmi_build.errors import Problem

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


@cache
def instances() -> Mapping[str, Instance]:
    """
    Every known instance type by name, in the file's order.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    found: dict[str, Instance] = {}
    for name, table in read_tables(FILE).items():
        for instance in _family(name, table):
            found[instance.name] = instance
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


def _family(name: str, table: Mapping[str, Any]) -> list[Instance]:
    """The sizes of one family; each is [devices, vCPUs, host memory in GiB]."""
    where = f"{FILE}: [{name}]"
    family = read_row(_Family, table, where=where)
    if family.accelerator not in ACCELERATORS:
        raise ValueError(f"{where}, `accelerator` is {family.accelerator!r}")
    for words in (family.uses, *family.other_uses.values()):
        if unknown := sorted(set(words) - set(USES)):
            raise ValueError(f"{where}, `uses` has {unknown}")
    found = []
    for size, numbers in family.sizes.items():
        if len(numbers) != 3:  # noqa: PLR2004 - the three of the docstring
            raise ValueError(f"{where}, `sizes.{size}` has {len(numbers)} numbers")
        num_devices, num_vcpus, memory_gib = numbers
        found.append(
            Instance(
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
            )
        )
    return found
