"""What a Neuron artifact is bound to, for its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmi_build.backends.neuronx.target import Target
    from lmi_build.digest import JSONValue


def compatibility(target: Target, *, num_cores: int) -> dict[str, JSONValue]:
    """
    Release, machine, and every version that decides whether graphs load.

    Args:
        target: What it was built for.
        num_cores: NeuronCores that one copy of the model takes.
    """
    release = target.release
    versions = {
        "neuron_sdk": release.sdk,
        "neuronx-cc": release.neuronx_cc,
        "torch-neuronx": release.torch_neuronx,
        "torch": release.torch,
        "torch-xla": release.torch_xla,
        "libneuronxla": release.libneuronxla,
        "transformers-neuronx": release.transformers_neuronx,
        "neuronx-distributed": release.neuronx_distributed,
        "neuronx-distributed-inference": release.nxdi,
        "optimum-neuron": release.optimum_neuron,
        "transformers": release.transformers,
        "python": release.python,
    }
    return {
        "architecture": "x86_64",
        "device": target.instance.device,
        "family": target.family,
        "instance_type": target.instance.name,
        "loader": target.loader,
        "release": release.name,
        "num_cores": num_cores,
        "versions": {name: version for name, version in versions.items() if version},
    }
