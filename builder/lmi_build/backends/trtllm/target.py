"""Which release, which machine and which kind of artifact a recipe means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.backends.trtllm.layout import Placement
from lmi_build.catalog.instances import instances
from lmi_build.catalog.releases import newest, releases
from lmi_build.errors import Problem
from lmi_build.text import did_you_mean, join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.trtllm.bounds import EngineBounds
    from lmi_build.catalog.instances import Instance
    from lmi_build.catalog.releases import Release
    from lmi_build.digest import JSONValue
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
        names = tuple(releases())
        near = did_you_mean(spec.release, names)
        yield Problem(
            code="compile.unknown-release",
            message=f"the catalogue has no release `{spec.release}`",
            path="compile.release",
            hint=f"did you mean `{near}`?" if near else f"use {join_words(names)}",
        )
    else:
        release = releases()[spec.release] if spec.release else newest()
        yield from _artifact_problems(spec, release)
    yield from _instance_problems(spec)


def _artifact_problems(spec: CompileSpec, release: Release) -> Iterator[Problem]:
    """Whether the release has what is asked for, and the way out where not."""
    kind, has = spec.artifact, release.artifacts
    if not has:
        yield _unsupported(
            f"`{release.name}` loads nothing that lmi-build makes: {release.note}",
            "compile.release",
            f"write `release: {newest().name}`",
        )
    elif kind in {ENGINE, CHECKPOINT} and ENGINE not in has:
        why = f": {release.end_of_life}" if release.end_of_life else ""
        yield _unsupported(
            f"TensorRT-LLM {release.trtllm} of `{release.name}` builds no engine{why}",
            "compile.artifact",
            "write `artifact: hf-quantized`, which its PyTorch backend loads",
        )
    elif kind == HF_QUANTIZED and kind not in has:
        yield _unsupported(
            f"TensorRT-LLM {release.trtllm} of `{release.name}` loads engines only",
            "compile.artifact",
            f"write `artifact: engine`, or `release: {newest().name}`",
        )


def _instance_problems(spec: CompileSpec) -> Iterator[Problem]:
    found = instances().get(spec.target)
    if found is None:
        gpus = tuple(n for n, i in instances().items() if i.accelerator == "gpu")
        near = did_you_mean(spec.target, gpus)
        yield Problem(
            code="compile.unknown-target",
            message=f"`{spec.target}` is no instance type that the catalogue knows; an"
            " engine is built for one kind of GPU",
            path="compile.target",
            hint=f"did you mean `{near}`?" if near else "write `target: ml.g5.2xlarge`",
        )
        return
    if found.accelerator != "gpu":
        yield _unsupported(
            f"`{spec.target}` has no NVIDIA GPU",
            "compile.target",
            "write `target: ml.g5.2xlarge`, or another instance with NVIDIA GPUs",
        )
        return
    ranks = spec.tensor_parallel_size * spec.pipeline_parallel_size
    if ranks > found.num_devices:
        product = f"{spec.tensor_parallel_size} x {spec.pipeline_parallel_size}"
        yield Problem(
            code="compile.few-devices",
            message=f"{product} ranks need {ranks} GPUs, `{spec.target}` has"
            f" {found.num_devices}",
            path="compile.tensor_parallel_size",
            hint=f"split over {found.num_devices}, or take a larger instance",
        )


def serve_option_problems(options: Mapping[str, JSONValue]) -> Iterator[Problem]:
    """Everything wrong with `serve.options`."""
    for name, value in options.items():
        path = f"serve.options.{name}"
        if name not in SERVE_OPTIONS:
            near = did_you_mean(name, SERVE_OPTIONS)
            hint = f"use {join_words(tuple(SERVE_OPTIONS))}"
            yield Problem(
                code="serve.unknown-option",
                message=f"the server of TensorRT-LLM has no option `{name}`",
                path=path,
                hint=f"did you mean `{near}`?" if near else hint,
            )
        elif not _fits(name, value):
            yield Problem(
                code="serve.bad-option",
                message=f"`{name}` is {value!r}, it must be {SERVE_OPTIONS[name]}",
                path=path,
                hint=f"write `{name}: {_EXAMPLES[name]}`",
            )


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


def _unsupported(message: str, path: str, hint: str) -> Problem:
    return Problem(
        code="compile.unsupported",
        message=message,
        path=path,
        hint=hint,
        unsupported=True,
    )
