"""Which image, which machine and which handler a recipe means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmi_build.backends.problems import gpu_problems, unknown_release, unsupported
from lmi_build.catalog.instances import instances
from lmi_build.catalog.vllm_releases import newest_vllm, vllm_releases
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.vllm_releases import Handler, VllmRelease
    from lmi_build.values.recipe import CompileSpec, Recipe

_ARTIFACTS = ("auto", "checkpoint", "hf-quantized")
_DEEPSPEED = "deepspeed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """
    What a folder is for.

    Args:
        release: Row of the catalogue.
        handler: What loads it there.
        instance: The machine that will serve.
    """

    release: VllmRelease
    handler: Handler
    instance: Instance

    @property
    def vllm(self) -> str:
        """Version of vLLM that computes; empty where another library does."""
        return self.release.computes_with(self.handler)


def release_of(spec: CompileSpec, scheduler: str) -> VllmRelease:
    """
    The row that a recipe means; the newest where it names none.

    Raises:
        KeyError: It names one that is not known.
    """
    if spec.release is not None:
        return vllm_releases()[spec.release]
    container = "djl-deepspeed" if scheduler == _DEEPSPEED else "djl-lmi"
    return newest_vllm(container)


def find_target(recipe: Recipe) -> Target:
    """
    The target of a recipe that `target_problems` found nothing wrong with.

    Raises:
        KeyError: The release, its handler or the instance is not known.
    """
    scheduler = recipe.serve.rolling_batch
    release = release_of(recipe.compile, scheduler)
    handler = release.handler(scheduler)
    if handler is None:
        raise KeyError(scheduler)
    return Target(
        release=release, handler=handler, instance=instances()[recipe.compile.target]
    )


def target_problems(recipe: Recipe) -> Iterator[Problem]:
    """Every reason why a recipe names no target of this backend."""
    spec = recipe.compile
    if spec.release is not None and spec.release not in vllm_releases():
        message = f"the catalogue has no release `{spec.release}` with vLLM"
        yield unknown_release(spec.release, vllm_releases(), message=message)
    else:
        yield from _handler_problems(recipe)
    yield from gpu_problems(spec, why="which kernels vLLM has depends on its GPU")
    if spec.artifact not in _ARTIFACTS:
        yield unsupported(
            "vLLM has no engine file: it loads the Hugging Face folder itself",
            "compile.artifact",
            "remove the line",
        )
    if spec.loader != "auto":
        yield unsupported(
            f"`{spec.loader}` is a loader of Neuron graphs",
            "compile.loader",
            "remove the line",
        )


def _handler_problems(recipe: Recipe) -> Iterator[Problem]:
    """Whether the image has the scheduler that is asked for."""
    scheduler = recipe.serve.rolling_batch
    release = release_of(recipe.compile, scheduler)
    if release.handler(scheduler) is not None:
        return
    having = [
        row.name
        for row in vllm_releases().values()
        if row.published and row.handler(scheduler) is not None
    ]
    hint = f"write `release: {having[0]}`, or `rolling_batch: auto`"
    yield Problem(
        code="vllm.no-scheduler",
        message=f"`{release.name}` has no scheduler `{scheduler}` for such a folder",
        path="serve.rolling_batch",
        hint=hint if having else "write `rolling_batch: auto`",
        unsupported=True,
    )
