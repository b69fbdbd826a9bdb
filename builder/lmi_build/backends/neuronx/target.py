"""Which release, which machine and which library a recipe means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.problems import (
    unknown_instance,
    unknown_release,
    unsupported,
)
from lmi_build.catalog.instances import instances
from lmi_build.catalog.neuron_releases import neuron_releases, newest_neuron
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.errors import Problem
    from lmi_build.values.recipe import CompileSpec

_EXAMPLE = "ml.inf2.8xlarge"
_KINDS = ("auto", "engine")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """
    What is built, and for what.

    Args:
        release: Row of the catalogue.
        instance: The machine that will serve.
        loader: `tnx`, `optimum`, `nxdi` or `trace`.
    """

    release: NeuronRelease
    instance: Instance
    loader: str

    @property
    def family(self) -> str:
        """Instance family, such as `inf2`."""
        return family_of(self.instance)


def family_of(instance: Instance) -> str:
    """Instance family of `ml.inf2.8xlarge`: `inf2`."""
    return instance.name.split(".")[1]


def find_target(spec: CompileSpec, *, encoder: bool) -> Target:
    """
    The target of a recipe that `target_problems` found nothing wrong with.

    Args:
        spec: The recipe's `compile` section.
        encoder: The model has no decoder, so that nothing is generated.

    Raises:
        KeyError: The release or the instance is not known.
    """
    release = neuron_releases()[spec.release] if spec.release else newest_neuron()
    loader = spec.loader
    if loader == "auto":
        loader = _usual_loader(release, encoder=encoder)
    return Target(release=release, instance=instances()[spec.target], loader=loader)


def _usual_loader(release: NeuronRelease, *, encoder: bool) -> str:
    if encoder and "trace" in release.loaders:
        return "trace"
    return next(name for name in release.loaders if name != "trace" or encoder)


def target_problems(spec: CompileSpec, *, encoder: bool) -> Iterator[Problem]:
    """
    Every reason why a recipe names no target of a Neuron toolchain.

    Args:
        spec: The recipe's `compile` section.
        encoder: The model has no decoder, so that nothing is generated.
    """
    release = None
    if spec.release is not None and spec.release not in neuron_releases():
        message = f"the catalogue has no Neuron release `{spec.release}`"
        yield unknown_release(spec.release, neuron_releases(), message=message)
    else:
        release = neuron_releases()[spec.release] if spec.release else newest_neuron()
        yield from _loader_problems(spec, release, encoder=encoder)
    if spec.artifact not in _KINDS:
        yield unsupported(
            f"`neuronx` makes compiled graphs, not `{spec.artifact}`",
            "compile.artifact",
            "write `artifact: engine`, or remove the line",
        )
    if spec.pipeline_parallel_size > 1:
        yield unsupported(
            "no loader of a Neuron container splits layers over pipeline stages",
            "compile.pipeline_parallel_size",
            "remove it; `tensor_parallel_size` splits each layer over cores",
        )
    yield from _instance_problems(spec, release)


def _loader_problems(
    spec: CompileSpec, release: NeuronRelease, *, encoder: bool
) -> Iterator[Problem]:
    fitting = [name for name in release.loaders if (name == "trace") == encoder]
    what = "an encoder" if encoder else "a decoder"
    if spec.loader == "auto":
        if not fitting:
            yield unsupported(
                f"`{release.name}` loads no compiled graphs of {what}",
                "compile.release",
                f"write `release: {newest_neuron().name}`",
            )
    elif spec.loader not in release.loaders:
        has = join_words(release.loaders) if release.loaders else "none"
        yield unsupported(
            f"`{release.name}` has no loader `{spec.loader}`; it has {has}",
            "compile.loader",
            _other_release(spec.loader),
        )
    elif spec.loader not in fitting:
        yield unsupported(
            f"`{spec.loader}` does not load {what}",
            "compile.loader",
            "write `loader: auto`, or remove the line",
        )


def _other_release(loader: str) -> str:
    """A release that has the loader, one that can be pulled before others."""
    having = [row for row in neuron_releases().values() if loader in row.loaders]
    having.sort(key=lambda row: not row.published)
    if not having:
        return "write `loader: auto`, or remove the line"
    return f"write `release: {having[0].name}`, or remove `loader`"


def _instance_problems(
    spec: CompileSpec, release: NeuronRelease | None
) -> Iterator[Problem]:
    found = instances().get(spec.target)
    if found is None:
        yield unknown_instance(
            spec.target,
            accelerator="neuron",
            why="graphs are compiled for one generation of NeuronCores",
            example=_EXAMPLE,
        )
    elif found.accelerator != "neuron":
        yield unsupported(
            f"`{spec.target}` has no Neuron device",
            "compile.target",
            f"write `target: {_EXAMPLE}`, or another inf2 or trn1 instance",
        )
    elif release is not None and family_of(found) not in release.families:
        yield unsupported(
            f"`{release.name}` serves on {join_words(release.families)}, not on"
            f" {family_of(found)}",
            "compile.target",
            f"write `target: {_EXAMPLE}`, or take another release",
        )
