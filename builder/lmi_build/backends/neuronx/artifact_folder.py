"""What a folder of Transformers NeuronX holds, read from names, texts and headers."""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - a field's type
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build.backends.folder import read_object, read_text
from lmi_build.backends.neuronx.front_ends import GRAPHS_DIR
from lmi_build.backends.neuronx.layout import (
    CONFIG_NAME,
    HEAD_FILE,
    RECORD_NAME,
    VERSION_NAME,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmi_build.backends.folder import Folder
    from lmi_build.checkpoint.header import Header

WEIGHTS_SUFFIX = ".safetensors"
NEFF_SUFFIX = ".neff"
# A graph's name is the beginning of the hash of its HLO.
NEFF_NAME = re.compile(r"[0-9a-f]{20}\Z")
PRESHARDED = "is_presharded_checkpoint"
_LAYER = re.compile(r"decoder_layer_(\d+)\.safetensors\Z")
# Between a tensor's name and the core that it is for.
_RANK_MARK = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """
    One core's part of a tensor.

    Args:
        dtype: As `values.model.DTYPE_BITS` spells it.
        shape: Row-major; of no elements where the tensor does not exist.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def empty(self) -> bool:
        """It stands for a tensor that the model does not have."""
        return 0 in self.shape


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronArtifact:
    """
    A folder that is meant to be loaded without compiling.

    Args:
        config: `config.json` at the root.
        record: `neuron.json`, what the build said of itself; empty where there is none.
        version: Compiler's version in `compiled/VERSION`; empty where there is none.
        graphs: Bytes of each NEFF by name, without `.neff`.
        root_weights: Safetensors at the root.
        weights: Names of the files of weights, below the root.
        marked: `compiled/config.json` says that the weights are split over the cores.
        layers: Numbers of the decoder blocks that have a file of split weights.
        head: The head's split weights are there.
        shards: Each split tensor's parts by core, by file and name; empty where headers
            were not read.
        broken: Names in headers that are no part of a tensor.
    """

    config: Mapping[str, Any]
    record: Mapping[str, Any]
    version: str
    graphs: Mapping[str, int]
    root_weights: tuple[str, ...]
    weights: tuple[str, ...]
    marked: bool
    layers: tuple[int, ...]
    head: bool
    shards: Mapping[tuple[str, str], Mapping[int, Shard]]
    broken: tuple[str, ...] = ()


def read_neuron_artifact(
    folder: Folder, *, header: Callable[[str], Header] | None = None
) -> NeuronArtifact:
    """
    Read a folder; of weights at most the headers.

    Args:
        folder: What lies at `/opt/ml/model`.
        header: The header of one file of safetensors, by its path; None reads none.

    Raises:
        VerifyFailed: `engine.unreadable`, when `config.json` or another text is
            missing, absurdly large or broken.
        SourceInvalid: `checkpoint.*`, when a header is broken.
    """
    names = sorted(folder.sizes)
    here = f"{GRAPHS_DIR}/"
    graphs = {
        name.removeprefix(here).removesuffix(NEFF_SUFFIX): folder.sizes[name]
        for name in names
        if name.startswith(here) and name.endswith(NEFF_SUFFIX)
    }
    inside = f"{GRAPHS_DIR}/{CONFIG_NAME}"
    marks = read_object(folder, inside) if folder.has(inside) else {}
    split = [name for name in names if name.startswith(here)]
    split = [name for name in split if name.endswith(WEIGHTS_SUFFIX)]
    found = (_LAYER.match(name.removeprefix(here)) for name in split)
    shards, broken = _shards(split, header)
    version = f"{GRAPHS_DIR}/{VERSION_NAME}"
    return NeuronArtifact(
        config=MappingProxyType(read_object(folder, CONFIG_NAME)),
        record=MappingProxyType(
            read_object(folder, RECORD_NAME) if folder.has(RECORD_NAME) else {}
        ),
        version=_word(read_text(folder, version)) if folder.has(version) else "",
        graphs=MappingProxyType(graphs),
        root_weights=tuple(n for n in folder.names() if n.endswith(WEIGHTS_SUFFIX)),
        weights=tuple(n for n in names if "/" in n and n.endswith(WEIGHTS_SUFFIX)),
        marked=bool(marks.get(PRESHARDED)),
        layers=tuple(sorted(int(match[1]) for match in found if match)),
        head=f"{here}{HEAD_FILE}" in split,
        shards=MappingProxyType(shards),
        broken=broken,
    )


def _word(data: bytes) -> str:
    return data.decode("ascii", "replace").strip()


def _shards(
    names: list[str], header: Callable[[str], Header] | None
) -> tuple[dict[tuple[str, str], dict[int, Shard]], tuple[str, ...]]:
    """Parts by file and tensor, and the names that are none."""
    found: dict[tuple[str, str], dict[int, Shard]] = {}
    broken: list[str] = []
    if header is None:
        return found, ()
    for path in names:
        for name, entry in header(path).tensors.items():
            tensor, mark, rank = name.partition(_RANK_MARK)
            if not (mark and rank.isascii() and rank.isdigit()):
                broken.append(f"{path}: {name}")
                continue
            part = Shard(dtype=entry.dtype, shape=entry.shape)
            found.setdefault((path, tensor), {})[int(rank)] = part
    return found, tuple(broken)
