"""What the containers of the catalogue do with a folder when they start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.front_ends import GRAPHS_DIR, neuron_front_ends
from lmi_build.backends.neuronx.startup import neuron_startup
from lmi_build.backends.trtllm.front_ends import front_ends
from lmi_build.backends.trtllm.startup import startup
from lmi_build.backends.vllm.startup import names_vllm, vllm_startup
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.catalog.releases import releases
from lmi_build.catalog.vllm_releases import vllm_releases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.backends.verdicts import Verdict

_GRAPH = ".neff"
_TRTLLM, _NEURONX, _VLLM = "trtllm", "neuronx", "vllm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """
    A container that can be asked about.

    Args:
        name: Row of the catalogue.
        lmi: Version of LMI.
        kind: What it serves: `trtllm`, `neuronx` or `vllm`.
        judge: Its verdict on a folder.
    """

    name: str
    lmi: str
    kind: str
    judge: Callable[[Folder], Verdict]


def images() -> Mapping[str, Image]:
    """Every container with a front end that is known, by name, newest first."""
    found = [
        Image(
            name=name,
            lmi=row.lmi,
            kind=_TRTLLM,
            judge=partial(startup, lmi=row.lmi, trtllm=row.trtllm),
        )
        for name, row in releases().items()
        if row.lmi in front_ends()
    ]
    found += [
        Image(
            name=name,
            lmi=row.version,
            kind=_NEURONX,
            judge=partial(neuron_startup, lmi=row.version),
        )
        for name, row in neuron_releases().items()
        if row.container == "djl-neuronx" and row.version in neuron_front_ends()
    ]
    found += [
        Image(
            name=name,
            lmi=row.lmi,
            kind=_VLLM,
            judge=partial(vllm_startup, release=name),
        )
        for name, row in vllm_releases().items()
    ]
    return {image.name: image for image in found}


def choose_images(folder: Folder, release: str | None) -> tuple[Image, ...]:
    """
    The containers that are meant.

    Args:
        folder: Decides which devices are meant where only a version is named.
        release: A row of the catalogue, a version such as `0.33` or `0.33.0`, or None
            for every version.

    Returns:
        Newest first; empty where the catalogue has none.
    """
    rows = images()
    if release in rows:
        return (rows[str(release)],)
    kind = _kind(folder)
    return tuple(
        row
        for row in rows.values()
        if row.kind == kind and release in {None, row.lmi, row.lmi.rpartition(".")[0]}
    )


def _kind(folder: Folder) -> str:
    """Which images are meant where none is named: by what lies there, and says so."""
    if has_graphs(folder):
        return _NEURONX
    return _VLLM if names_vllm(folder) else _TRTLLM


def has_graphs(folder: Folder) -> bool:
    """Whether a folder holds what a Neuron compiler made."""
    inside = folder.inside(GRAPHS_DIR)
    return any(path.endswith(_GRAPH) for path in inside.sizes)
