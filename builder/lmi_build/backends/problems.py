"""What several backends say of a `compile` section in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.catalog.instances import instances
from lmi_build.errors import Problem
from lmi_build.text import did_you_mean, join_words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from lmi_build.values.recipe import CompileSpec, Recipe

_GPU_EXAMPLE = "ml.g5.2xlarge"
# Codes by the section of the options.
_UNKNOWN_OPTION: Mapping[str, str] = {
    "compile": "compile.unknown-option",
    "serve": "serve.unknown-option",
}
_BAD_OPTION: Mapping[str, str] = {
    "compile": "compile.bad-option",
    "serve": "serve.bad-option",
}


def refused(code: str, message: str, path: str, hint: str) -> Problem:
    """
    A sound wish that a backend cannot fulfil.

    Args:
        code: Stable slug, `room.fault`.
        message: What is wished for, and why it cannot be.
        path: Dotted path in the recipe.
        hint: What to write instead.
    """
    return Problem(code=code, message=message, path=path, hint=hint, unsupported=True)


def unsupported(message: str, path: str, hint: str) -> Problem:
    """
    The same under `compile.unsupported`, for wishes without a code of their own.

    Args:
        message: What is wished for, and why it cannot be.
        path: Dotted path in the recipe.
        hint: What to write instead.
    """
    return refused("compile.unsupported", message, path, hint)


def unknown_release(name: str, known: Collection[str], *, message: str) -> Problem:
    """
    `compile.release` names no row of a backend's catalogue.

    Args:
        name: What stands there.
        known: Every row.
        message: What is wrong, in the backend's words.
    """
    return Problem(
        code="compile.unknown-release",
        message=message,
        path="compile.release",
        hint=_meant(name, known),
    )


def unknown_option(
    name: str, known: Collection[str], *, whose: str, section: str = "compile"
) -> Problem:
    """
    A key of an `options` section that nobody reads.

    Args:
        name: The key.
        known: Every key that is read.
        whose: Who has no such option, as a sentence begins.
        section: `compile` or `serve`.
    """
    return Problem(
        code=_UNKNOWN_OPTION[section],
        message=f"{whose} has no option `{name}`",
        path=f"{section}.options.{name}",
        hint=_meant(name, known),
    )


def bad_option(
    name: str, value: object, *, form: str, hint: str, section: str = "compile"
) -> Problem:
    """
    A value of an `options` section that its key cannot have.

    Args:
        name: The key.
        value: What stands there.
        form: What it must be.
        hint: What to write.
        section: `compile` or `serve`.
    """
    return Problem(
        code=_BAD_OPTION[section],
        message=f"`{name}` is {value!r}, it must be {form}",
        path=f"{section}.options.{name}",
        hint=hint,
    )


def unknown_instance(
    target: str, *, accelerator: str, why: str, example: str
) -> Problem:
    """
    `compile.target` names no machine that the catalogue knows.

    Args:
        target: What stands there.
        accelerator: What the machines of the backend have, such as `gpu`.
        why: What depends on the machine, as a sentence ends.
        example: A machine that would do.
    """
    fitting = [n for n, row in instances().items() if row.accelerator == accelerator]
    return Problem(
        code="compile.unknown-target",
        message=f"`{target}` is no instance type that the catalogue knows; {why}",
        path="compile.target",
        hint=_meant(target, fitting, otherwise=f"write `target: {example}`"),
    )


def gpu_problems(spec: CompileSpec, *, why: str) -> Iterator[Problem]:
    """
    Whether the target is a machine with enough NVIDIA GPUs.

    Args:
        spec: The recipe's `compile` section.
        why: What depends on the GPU, as a sentence ends.
    """
    found = instances().get(spec.target)
    if found is None:
        yield unknown_instance(
            spec.target, accelerator="gpu", why=why, example=_GPU_EXAMPLE
        )
        return
    if found.accelerator != "gpu":
        yield unsupported(
            f"`{spec.target}` has no NVIDIA GPU",
            "compile.target",
            f"write `target: {_GPU_EXAMPLE}`, or another instance with NVIDIA GPUs",
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


def single_engine_problems(
    spec: CompileSpec, *, backend: str, engine_of: str
) -> Iterator[Problem]:
    """
    What a backend refuses that makes one engine, whole, by no image's release.

    Args:
        spec: The recipe's `compile` section.
        backend: Its name.
        engine_of: Whose engine messages call it.
    """
    if spec.release is not None:
        yield unsupported(
            f"`{backend}` has no releases in the catalogue, `{spec.release}` is set",
            "compile.release",
            "remove the line",
        )
    if spec.artifact not in {"auto", "engine"}:
        yield unsupported(
            f"`{backend}` makes engines, not `{spec.artifact}`",
            "compile.artifact",
            "write `artifact: engine`, or remove the line",
        )
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = getattr(spec, name)
        if size != 1:
            yield unsupported(
                f"`{name}` is {size}, an engine of {engine_of} is not split",
                f"compile.{name}",
                f"set `{name}: 1`",
            )


def own_code_problems(recipe: Recipe, *, backend: str) -> Iterator[Problem]:
    """
    What a backend refuses that computes every model by code of its own.

    Args:
        recipe: The recipe.
        backend: Its name.
    """
    if recipe.model.trust_remote_code:
        yield unsupported(
            f"`{backend}` never runs a model's own code",
            "model.trust_remote_code",
            "set `trust_remote_code: false`",
        )


def beam_problems(recipe: Recipe) -> Iterator[Problem]:
    """
    What a backend refuses that follows the one best continuation.

    Args:
        recipe: The recipe.
    """
    width = recipe.bounds.max_beam_width
    if width != 1:
        yield unsupported(
            f"`max_beam_width` is {width}, this backend searches with one beam",
            "bounds.max_beam_width",
            "set `max_beam_width: 1`",
        )


def _meant(word: str, known: Collection[str], *, otherwise: str = "") -> str:
    """What was meant; where nothing is near, `otherwise` or all there is."""
    near = did_you_mean(word, known)
    listed = otherwise or f"use {join_words(tuple(known))}"
    return f"did you mean `{near}`?" if near else listed
