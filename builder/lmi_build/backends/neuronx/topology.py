"""Over how many cores of an instance a layer can be split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.catalog.instances import Instance

# What the runtime's collectives take, by instance family. trn1: the message of the
# runtime in huggingface/optimum-neuron#619; a larger size is a multiple of 32. inf2: a
# ring of chips, so every even number of cores. trn2: NxD Inference's feature guide,
# with two physical cores as one, the default.
_TRN1 = (1, 2, 8, 16)
_TRN1_STEP = 32
_TRN2 = (1, 2, 4, 8, 16, 32, 64)
# Sizes that the vendor's guides name for inf2; others work, but are tried less.
_INF2_NAMED = (1, 2, 4, 8, 12, 24)
_RULES = {
    "inf2": "1, or a multiple of 2",
    "trn1": "1, 2, 8, 16 or a multiple of 32",
    "trn1n": "1, 2, 8, 16 or a multiple of 32",
    "trn2": "a power of two",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """
    The devices that a model needs.

    Args:
        num_cores: Cores it is split over.
        paths: Device files, as a container must be given them.
    """

    num_cores: int
    paths: tuple[str, ...]


def legal_sizes(instance: Instance) -> tuple[int, ...]:
    """
    Every number of cores that one model can be split over, rising.

    Args:
        instance: A machine with Neuron devices; empty for any other.

    Example: `legal_sizes(instances()["ml.trn1.32xlarge"])` is `(1, 2, 8, 16, 32)`.
    """
    cores = instance.num_cores
    family = _family(instance)
    if family == "inf2":
        sizes = [1, *range(2, cores + 1, 2)]
    elif family in {"trn1", "trn1n"}:
        sizes = [*_TRN1, *range(_TRN1_STEP, cores + 1, _TRN1_STEP)]
    elif family == "trn2":
        sizes = list(_TRN2)
    else:
        return ()
    return tuple(size for size in sizes if size <= cores)


def nearest_size(instance: Instance, size: int) -> int:
    """
    The legal size nearest to one that is not; of two as near the larger.

    Args:
        instance: A machine with Neuron devices.
        size: Cores that were asked for.

    Raises:
        ValueError: The machine has no Neuron device.
    """
    sizes = legal_sizes(instance)
    if not sizes:
        raise ValueError(f"`{instance.name}` has no Neuron device")
    return min(sizes, key=lambda legal: (abs(legal - size), -legal))


def devices_needed(instance: Instance, size: int) -> Devices:
    """
    Which devices a model split over `size` cores occupies, from the first.

    Args:
        instance: A machine with Neuron devices.
        size: A legal number of cores.

    Example: 12 cores of `ml.inf2.24xlarge` are `/dev/neuron0` to `/dev/neuron5`.
    """
    count = -(-size // instance.cores_per_device)
    return Devices(
        num_cores=size,
        paths=tuple(f"/dev/neuron{index}" for index in range(count)),
    )


def topology_problems(instance: Instance, size: int) -> Iterator[Problem]:
    """
    Why a model cannot be split so on a machine.

    The toolchain compiles such graphs without a word; the runtime refuses them when
    they are loaded.

    Args:
        instance: The machine that will serve.
        size: `compile.tensor_parallel_size`.
    """
    sizes = legal_sizes(instance)
    if not sizes or size in sizes:
        return
    cores, path = instance.num_cores, "compile.tensor_parallel_size"
    near = nearest_size(instance, size)
    if size > cores:
        yield Problem(
            code="neuronx.few-cores",
            message=f"the model is split over {size} cores, `{instance.name}` has"
            f" {cores}",
            path=path,
            hint=f"set `tensor_parallel_size: {sizes[-1]}`, or take a larger instance",
        )
        return
    words = ", ".join(map(str, sizes))
    yield Problem(
        code="neuronx.topology",
        message=f"the runtime joins {_RULES[_family(instance)]} cores of"
        f" `{instance.name}`, not {size}; it would say so only when the graphs are"
        " loaded",
        path=path,
        hint=f"set `tensor_parallel_size: {near}`; legal sizes are {words}",
    )


def topology_finding(instance: Instance, size: int) -> str | None:
    """
    What to tell about a size that is legal, but that no guide names, or None.

    Args:
        instance: The machine that will serve.
        size: A legal number of cores.
    """
    if _family(instance) != "inf2" or size in _INF2_NAMED:
        return None
    named = ", ".join(str(name) for name in _INF2_NAMED if name <= instance.num_cores)
    return (
        f"{size} cores are a ring that the runtime can join, but guides for inf2 name"
        f" {named} only"
    )


def core_memory_bytes(instance: Instance) -> int:
    """
    Device memory that one core has.

    Args:
        instance: A machine with Neuron devices.
    """
    return instance.device_memory_bytes // instance.cores_per_device


def _family(instance: Instance) -> str:
    return instance.name.split(".")[1]
