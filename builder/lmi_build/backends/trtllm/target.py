"""Which release, which machine and which kind of artifact a recipe means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.problems import (
    bad_option,
    gpu_problems,
    unknown_option,
    unknown_release,
    unsupported,
)
from lmi_build.backends.trtllm.layout import Placement
from lmi_build.catalog.instances import instances
from lmi_build.catalog.releases import newest, releases
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.trtllm.bounds import EngineBounds
    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.releases import Release
    from lmi_build.digest import JSONValue
    from lmi_build.errors import Problem
    from lmi_build.values.recipe import CompileSpec

ENGINE, CHECKPOINT, HF_QUANTIZED = "engine", "checkpoint", "hf-quantized"
_SCHEDULERS = ("guaranteed_no_evict", "max_utilization")
# What `serve.options` may say, with the form of its value.
SERVE_OPTIONS: Mapping[str, str] = {
    "kv_cache_fraction": "a number above 0 and below 1",
    "kv_cache_reuse": "`true` or `false`",
    "batch_scheduler_policy": join_words(_SCHEDULERS),
}
_EXAMPLES: Mapping[str, str] = {
    "kv_cache_fraction": "0.9",
    "kv_cache_reuse": "true",
    "batch_scheduler_policy": _SCHEDULERS[0],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """
    What is built, and for what.

    Args:
        release: Row of the catalogue.
        instance: The machine that will serve.
        kind: `engine`, `checkpoint` or `hf-quantized`.
    """

    release: Release
    instance: Instance
    kind: str


def find_target(spec: CompileSpec) -> Target:
    """
    The target of a recipe that `target_problems` found nothing wrong with.

    Raises:
        KeyError: The release or the instance is not known.
    """
    release = releases()[spec.release] if spec.release else newest()
    kind = spec.artifact
    if kind == "auto":
        kind = ENGINE if ENGINE in release.artifacts else HF_QUANTIZED
    return Target(release=release, instance=instances()[spec.target], kind=kind)


def target_problems(spec: CompileSpec) -> Iterator[Problem]:
    """Every reason why a recipe names no target of TensorRT-LLM."""
    if spec.release is not None and spec.release not in releases():
        message = f"the catalogue has no release `{spec.release}`"
        yield unknown_release(spec.release, releases(), message=message)
    else:
        release = releases()[spec.release] if spec.release else newest()
        yield from _artifact_problems(spec, release)
    yield from gpu_problems(spec, why="an engine is built for one kind of GPU")


def _artifact_problems(spec: CompileSpec, release: Release) -> Iterator[Problem]:
    """Whether the release has what is asked for, and the way out where not."""
    kind, has = spec.artifact, release.artifacts
    if not has:
        yield unsupported(
            f"`{release.name}` loads nothing that lmi-build makes: {release.note}",
            "compile.release",
            f"write `release: {newest().name}`",
        )
    elif kind in {ENGINE, CHECKPOINT} and ENGINE not in has:
        why = f": {release.end_of_life}" if release.end_of_life else ""
        yield unsupported(
            f"TensorRT-LLM {release.trtllm} of `{release.name}` builds no engine{why}",
            "compile.artifact",
            "write `artifact: hf-quantized`, which its PyTorch backend loads",
        )
    elif kind == HF_QUANTIZED and kind not in has:
        yield unsupported(
            f"TensorRT-LLM {release.trtllm} of `{release.name}` loads engines only",
            "compile.artifact",
            f"write `artifact: engine`, or `release: {newest().name}`",
        )


def serve_option_problems(options: Mapping[str, JSONValue]) -> Iterator[Problem]:
    """Everything wrong with `serve.options`."""
    for name, value in options.items():
        if name not in SERVE_OPTIONS:
            whose = "the server of TensorRT-LLM"
            yield unknown_option(name, SERVE_OPTIONS, whose=whose, section="serve")
        elif not _fits(name, value):
            hint = f"write `{name}: {_EXAMPLES[name]}`"
            form = SERVE_OPTIONS[name]
            yield bad_option(name, value, form=form, hint=hint, section="serve")


def _fits(name: str, value: JSONValue) -> bool:
    if name == "kv_cache_reuse":
        return isinstance(value, bool)
    if name == "batch_scheduler_policy":
        return value in _SCHEDULERS
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < float(str(value)) < 1


def placement(
    target: Target,
    spec: CompileSpec,
    bounds: EngineBounds,
    options: Mapping[str, Any],
    *,
    encoder: bool = False,
    attention_window: int = 0,
) -> Placement:
    """
    What lies where, for the layout.

    Args:
        target: What is built.
        spec: Ranks.
        bounds: What the engine was lowered to.
        options: `serve.options`, checked.
        encoder: The model has an encoder and a decoder.
        attention_window: Tokens that a block attends to; 0 for all.
    """
    chosen: dict[str, Any] = {}
    for name, field in (
        ("kv_cache_fraction", "kv_cache_fraction"),
        ("kv_cache_reuse", "kv_cache_reuse"),
        ("batch_scheduler_policy", "scheduler"),
    ):
        if name in options:
            chosen[field] = options[name]
    return Placement(
        kind=target.kind,
        bounds=bounds,
        tensor_parallel_size=spec.tensor_parallel_size,
        pipeline_parallel_size=spec.pipeline_parallel_size,
        encoder=encoder,
        attention_window=attention_window,
        **chosen,
    )
