"""How LMI turns properties into a call of Transformers NeuronX, read from data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx import PACKAGE
from lmi_build.catalog.tables import read_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.catalog.neuron_releases import NeuronRelease

FILE = "tnx_loaders.toml"
CLASSES = ("own", "auto")
CONTEXTS = ("whole", "listed")
WEIGHTS = ("save_pretrained_split", "checkpoint", "presharded")


@dataclass(frozen=True, kw_only=True, slots=True)
class TnxLoader:
    """
    The loader of one release and of those after it.

    Args:
        model_class: Of `CLASSES`: the model's own class, or the automatic one.
        continuous_models: Model types whose requests join and leave a running batch.
        continuous_from: Smallest batch that does so.
        context: Of `CONTEXTS`: with continuous batching prompts have one bucket of all
            positions, or those that are listed.
        weights: Of `WEIGHTS`: what lies beside the graphs.
        continuous_only: Every model is batched continuously, whether its class can or
            not.
    """

    model_class: str
    continuous_models: tuple[str, ...]
    continuous_from: int
    context: str
    weights: str
    continuous_only: bool = False

    def continuous(self, model_type: str, batch_size: int) -> bool:
        """Whether requests of a model join and leave a running batch."""
        return model_type in self.continuous_models and (
            batch_size >= self.continuous_from
        )


@cache
def tnx_loaders() -> Mapping[str, TnxLoader]:
    """
    Every row by its first version, oldest first.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    found = read_rows(TnxLoader, FILE, package=PACKAGE)
    for name, row in found.items():
        for value, allowed in (
            (row.model_class, CLASSES),
            (row.context, CONTEXTS),
            (row.weights, WEIGHTS),
        ):
            if value not in allowed:
                raise ValueError(f"{FILE}: [{name}] has {value!r}")
    return found


def tnx_loader(release: NeuronRelease) -> TnxLoader:
    """
    The loader of a release.

    Args:
        release: One with the loader `tnx`.

    Raises:
        KeyError: It is older than every row.
    """
    rows = tnx_loaders()
    reached = [name for name in rows if _key(name) <= _key(release.version)]
    if not reached:
        raise KeyError(release.version)
    return rows[max(reached, key=_key)]


def _key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))
