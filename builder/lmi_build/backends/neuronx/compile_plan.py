"""Parameters of the compile stage: a call, and the toolchain that carries it out."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.calls import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.neuronx.calls import NeuronCall
    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.digest import JSONValue

# Distributions that a loader computes with, and where a release has their versions.
_COMMON = {
    "neuronx-cc": "neuronx_cc",
    "torch-neuronx": "torch_neuronx",
    "transformers": "transformers",
}
_OWN = {
    "tnx": {
        "transformers-neuronx": "transformers_neuronx",
        "libneuronxla": "libneuronxla",
    },
    "optimum": {"optimum-neuron": "optimum_neuron"},
    "nxdi": {
        "neuronx-distributed": "neuronx_distributed",
        "neuronx-distributed-inference": "nxdi",
    },
    "trace": {},
}
# Where LMI's loader stands while graphs are made, where a release does not say.
_WORKDIR = "/tmp"  # noqa: S108 - nothing is written there by a name of ours


@dataclass(frozen=True, kw_only=True, slots=True)
class CompilePlan:
    """
    What the compile stage is told.

    Args:
        call: A `NeuronCall` as JSON.
        release: Name of the release.
        versions: Version of each distribution that must answer.
        python: Version of the release's Python, such as `3.10`.
        prefix: Where the release's image keeps its Python packages; empty where that is
            not known.
        workdir: Where the toolchain must stand while graphs are made.
        num_cores: NeuronCores that loading the model takes.
        device_needed: It cannot be compiled where there is no device.
        block: What `config.json` says under `neuron`, or None. The driver puts the
            compiler's own version into its `compiler_version`.
        expected: Of the driver's `effective` values, those that must come out so.
    """

    call: Mapping[str, Any]
    release: str
    versions: Mapping[str, str]
    python: str
    prefix: str
    workdir: str
    num_cores: int
    device_needed: bool
    block: Mapping[str, Any] | None = None
    expected: Mapping[str, Any] = field(default_factory=dict)

    @property
    def compiler(self) -> str:
        """Version of the compiler."""
        return self.versions["neuronx-cc"]

    def to_json(self) -> dict[str, JSONValue]:
        """The stage's parameters."""
        return {item.name: plain(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_json(cls, params: Mapping[str, Any]) -> CompilePlan:
        """The same from parameters that crossed a process."""
        return cls(**{item.name: params[item.name] for item in fields(cls)})


def compile_plan(
    call: NeuronCall,
    release: NeuronRelease,
    *,
    num_cores: int,
    device_needed: bool | None = None,
    block: Mapping[str, Any] | None = None,
    expected: Mapping[str, Any] | None = None,
) -> CompilePlan:
    """
    The stage that carries a call out.

    Args:
        call: The call.
        release: Whose toolchain it is for.
        num_cores: NeuronCores that loading the model takes.
        device_needed: None takes what the release's library can.
        block: What `config.json` says under `neuron`.
        expected: Effective values that must come out, such as
            `{"token_buckets": [2048], "group_query_attention": "shard-over-heads"}`.

    Example:
        >>> plan = compile_plan(call, release, num_cores=24)  # doctest: +SKIP
        >>> stage_params = plan.to_json()  # doctest: +SKIP
    """
    rows = {**_COMMON, **_OWN[call.loader]}
    found = {name: str(getattr(release, row)) for name, row in rows.items()}
    if device_needed is None:
        device_needed = _device_needed(call.loader, release)
    return CompilePlan(
        call=call.to_json(),
        release=release.name,
        versions={name: version for name, version in found.items() if version},
        python=release.python,
        prefix=release.site_packages,
        workdir=release.working_directory or _WORKDIR,
        num_cores=num_cores,
        device_needed=device_needed,
        block=block,
        expected=dict(expected or {}),
    )


def _device_needed(loader: str, release: NeuronRelease) -> bool:
    """Whether a library compiles only where there are NeuronCores."""
    if loader == "optimum":
        # Over transformers-neuronx, `_export` asks the system for a device first.
        return bool(release.transformers_neuronx)
    return loader == "tnx" and not release.cpu_compile
