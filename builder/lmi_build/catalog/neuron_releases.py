"""Releases of the containers that serve Neuron artifacts, read from data."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - the rows' hints are read
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.catalog.tables import newest_published, read_named_rows

if TYPE_CHECKING:
    from lmi_build.catalog.tables import Words

FILE = "neuron_releases.toml"
CONTAINERS = ("djl-neuronx", "huggingface-vllm-neuronx")
LAYOUTS = ("split", "presharded", "export", "")
LOADERS = ("tnx", "optimum", "nxdi", "trace")


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronRelease:
    """
    What one image compiles and loads.

    Args:
        name: Such as `djl-neuronx-0.30.0`.
        container: One of `CONTAINERS`.
        version: Version of the image, such as `0.30.0`.
        repository: Repository of the image in its registry.
        tag: Its tag; empty where none was published.
        published: An image of it can be pulled.
        sdk: Version of the Neuron SDK.
        neuronx_cc: Version of the compiler.
        torch_neuronx: Version of torch-neuronx.
        torch: Version of PyTorch.
        torch_xla: Version of PyTorch/XLA; empty where it is not pinned.
        libneuronxla: Version of libneuronxla; empty where it is not pinned.
        transformers_neuronx: Version of transformers-neuronx; empty without it.
        neuronx_distributed: Version of NeuronX Distributed.
        nxdi: Version of NxD Inference; empty without it.
        optimum_neuron: Version of optimum-neuron; empty without it.
        transformers: Version of transformers.
        python: Version of Python.
        loaders: Of `LOADERS`, those that load an artifact without compiling it; the
            first is the one that is taken where a recipe names none.
        layout: Of a compiled decoder: `split` (weights in `checkpoint/`, graphs in
            `compiled/`), `presharded` (both in `compiled/`), `export` (optimum-neuron's
            folder), or empty for none.
        families: Instance families it serves on, such as `inf2`.
        vllm: Version of vLLM, where requests come in through it alone.
        site_packages: Where its Python finds packages; file names of graphs are hashes
            that depend on it. Empty where that is not known.
        working_directory: Where LMI goes before graphs are built, for the same reason.
        cc_flags: `NEURON_CC_FLAGS` of the image.
        cpu_compile: Its transformers-neuronx compiles without a device.
        sharded_weights: Its transformers-neuronx saves weights split by rank.
        continuous_field: The argument of its ContinuousBatchingConfig that holds the
            number of sequences; empty where there is no such class. LMI always passes
            `batch_size_for_shared_caches`, which the newer ones take as well.
        context_buckets: With continuous batching it takes prefill buckets other than
            the one of all positions.
        properties: Every key of `serving.properties` that its handler reads, without
            `option.`.
        options: Fields of NeuronConfig that its `tnx` loader can be told, by the key
            that tells them.
        end_of_life: What its makers said about its end.
        note: What else matters.
        source: Where it was read.
    """

    name: str
    container: str
    version: str
    repository: str
    published: bool
    sdk: str
    neuronx_cc: str
    torch_neuronx: str
    torch: str
    transformers: str
    python: str
    loaders: tuple[str, ...]
    families: tuple[str, ...]
    source: str
    layout: str = ""
    tag: str = ""
    vllm: str = ""
    site_packages: str = ""
    working_directory: str = ""
    cc_flags: str = ""
    cpu_compile: bool = False
    sharded_weights: bool = False
    continuous_field: str = ""
    context_buckets: bool = False
    properties: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    torch_xla: str = ""
    libneuronxla: str = ""
    transformers_neuronx: str = ""
    neuronx_distributed: str = ""
    nxdi: str = ""
    optimum_neuron: str = ""
    end_of_life: str = ""
    note: str = ""

    @property
    def tnx_row(self) -> str:
        """Major and minor version of transformers-neuronx, such as `0.12`."""
        return ".".join(self.transformers_neuronx.split(".")[:2])


@cache
def neuron_releases() -> Mapping[str, NeuronRelease]:
    """
    Every known release by name, newest first, LMI images before others.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    return read_named_rows(NeuronRelease, FILE, words=_words)


def _words(row: NeuronRelease) -> tuple[Words, ...]:
    return (
        ("container", (row.container,), CONTAINERS),
        ("layout", (row.layout,), LAYOUTS),
        ("loaders", row.loaders, LOADERS),
        ("options", row.options.values(), row.properties),
    )


def newest_neuron(container: str = "djl-neuronx") -> NeuronRelease:
    """
    The newest published release of one container.

    Args:
        container: One of `CONTAINERS`.

    Raises:
        KeyError: No published release has that container.
    """
    return newest_published(neuron_releases(), container)
