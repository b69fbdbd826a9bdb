"""What the containers of the catalogue do with a folder when they start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.front_ends import GRAPHS_DIR, neuron_front_ends
from lmi_build.backends.neuronx.startup import neuron_startup
from lmi_build.backends.trtllm.front_ends import front_ends
from lmi_build.backends.trtllm.startup import startup
from lmi_build.catalog.neuron_releases import neuron_releases
from lmi_build.catalog.releases import releases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.backends.verdicts import Verdict

_GRAPH = ".neff"


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """
    A container that can be asked about.

    Args:
        name: Row of the catalogue.
        lmi: Version of LMI.
        neuron: It serves on Neuron devices.
        judge: Its verdict on a folder.
    """

    name: str
    lmi: str
    neuron: bool
    judge: Callable[[Folder], Verdict]


def images() -> Mapping[str, Image]:
    """Every container with a front end that is known, by name, newest first."""
    found = [
        Image(
            name=name,
            lmi=row.lmi,
            neuron=False,
            judge=partial(startup, lmi=row.lmi, trtllm=row.trtllm),
        )
        for name, row in releases().items()
        if row.lmi in front_ends()
    ]
    found += [
        Image(
            name=name,
            lmi=row.version,
            neuron=True,
            judge=partial(neuron_startup, lmi=row.version),
        )
        for name, row in neuron_releases().items()
        if row.container == "djl-neuronx" and row.version in neuron_front_ends()
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
    neuron = has_graphs(folder)
    return tuple(
        row
        for row in rows.values()
        if row.neuron == neuron
        and release in {None, row.lmi, row.lmi.rpartition(".")[0]}
    )


def has_graphs(folder: Folder) -> bool:
    """Whether a folder holds what a Neuron compiler made."""
    inside = folder.inside(GRAPHS_DIR)
    return any(path.endswith(_GRAPH) for path in inside.sizes)
