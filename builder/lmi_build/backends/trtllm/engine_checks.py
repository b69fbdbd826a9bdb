"""Why an engine, or a checkpoint, is not the one that was planned."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmi_build.errors import Problem
from lmi_build.text import join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.trtllm.engine_folder import CheckpointFolder, EngineFolder

# An engine may take more than was promised of these, and never less.
_AT_LEAST = (
    "max_input_len",
    "max_output_len",
    "max_batch_size",
    "max_num_tokens",
    "max_beam_width",
)
_LONGEST_LIST = 8
_HARMLESS = "engine.rank-extra"
# A fourth one counts builds of the same release.
_RELEASE_PARTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """
    What an engine should be; what is None or empty is not compared.

    Args:
        trtllm: Version of TensorRT-LLM that will load it.
        tensorrt: Version of TensorRT that will load it.
        tensor_parallel_size: Ranks that a layer is split over.
        pipeline_parallel_size: Ranks that the layers are split over.
        bounds: The least it must take, by the names of `Bounds`.
        quant_algo: TensorRT-LLM's word for the quantization, empty for none.
        kv_cache_quant_algo: The same of the key-value cache.
        dtype: Float type of what is not quantized.
        vocab_size: Tokens of the model.
        device: The GPU that will serve it, for messages.
        compute_capability: Of that GPU, such as `8.6`.
    """

    trtllm: str | None = None
    tensorrt: str | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    bounds: Mapping[str, int] = field(default_factory=dict)
    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None
    dtype: str | None = None
    vocab_size: int | None = None
    device: str | None = None
    compute_capability: str | None = None


def engine_problems(engine: EngineFolder, expected: Expected) -> tuple[Problem, ...]:
    """Every way in which an engine differs from what was planned, or is not whole."""
    return (
        *rank_problems(engine),
        *_mapping_problems(engine, expected),
        *_bound_problems(engine, expected),
        *_model_problems(engine, expected),
        *_version_problems(engine, expected),
        *_device_problems(engine, expected),
    )


def load_problems(engine: EngineFolder, expected: Expected) -> tuple[Problem, ...]:
    """Those of `engine_problems` with which a server does not start."""
    # A file of another build is never opened.
    found = engine_problems(engine, expected)
    return tuple(problem for problem in found if problem.code != _HARMLESS)


def checkpoint_problems(
    checkpoint: CheckpointFolder, expected: Expected
) -> tuple[Problem, ...]:
    """Every way in which a checkpoint differs from what was planned."""
    return (
        *rank_problems(checkpoint),
        *_mapping_problems(checkpoint, expected),
        *_model_problems(checkpoint, expected),
    )


def unknowns(engine: EngineFolder) -> tuple[str, ...]:
    """What the folder does not say, so that nobody can check it without loading it."""
    found = []
    if engine.version is None:
        found.append("the version of TensorRT-LLM that built it")
    if engine.quant_algo is None:
        found.append("its quantization")
    if engine.built_on is None:
        found.append("the GPU and the version of TensorRT that it was built with")
    return tuple(found)


def rank_problems(folder: EngineFolder | CheckpointFolder) -> Iterator[Problem]:
    """A rank too few, a rank too many, a file of nothing."""
    wanted = set(range(folder.world_size))
    split = (
        f"tensor parallel {folder.tensor_parallel_size} x pipeline parallel"
        f" {folder.pipeline_parallel_size}"
    )
    if missing := sorted(wanted - set(folder.ranks)):
        yield Problem(
            code="engine.rank-missing",
            message=f"{split} needs {folder.world_size} ranks,"
            f" {len(folder.ranks)} are there; missing: {_numbers(missing)}",
            hint="build it again: the ranks of one build belong together",
        )
    if extra := sorted(set(folder.ranks) - wanted):
        names = [folder.ranks[rank] for rank in extra[:_LONGEST_LIST]]
        yield Problem(
            code=_HARMLESS,
            message=f"{split} has {folder.world_size} ranks, but there is"
            f" {join_words(names, last='and')} as well",
            hint="build into an empty folder: these are of another build",
        )
    if empty := sorted(rank for rank, size in folder.sizes.items() if size == 0):
        yield Problem(
            code="engine.rank-missing",
            message=f"the file of rank {_numbers(empty)} is empty",
            hint="build it again, or fetch it again from where it came",
        )


def _mapping_problems(
    folder: EngineFolder | CheckpointFolder, expected: Expected
) -> Iterator[Problem]:
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        wanted, found = getattr(expected, name), getattr(folder, name)
        if wanted is not None and wanted != found:
            yield Problem(
                code="engine.parallel-differs",
                message=f"it was built for `{name}` {found}, {wanted} is wanted",
                path=f"compile.{name}",
                hint=f"build it with {wanted}, or serve it with {found}",
            )


def _bound_problems(engine: EngineFolder, expected: Expected) -> Iterator[Problem]:
    found = dict(engine.bounds)
    if engine.max_seq_len is not None:
        found["max_seq_len"] = engine.max_seq_len
    for name in (*_AT_LEAST, "max_seq_len"):
        wanted, built = expected.bounds.get(name), found.get(name)
        if wanted is None or built is None or built >= wanted:
            continue
        yield Problem(
            code="engine.bounds-smaller",
            message=f"it was built for `{name}` {built}, {wanted} is promised",
            path=f"bounds.{name}",
            hint=f"build it for {wanted}, or promise {built}",
        )


def _model_problems(
    folder: EngineFolder | CheckpointFolder, expected: Expected
) -> Iterator[Problem]:
    for name, what in (
        ("quant_algo", "quantization"),
        ("kv_cache_quant_algo", "quantization of the key-value cache"),
        ("dtype", "float type"),
        ("vocab_size", "vocabulary"),
    ):
        wanted = getattr(expected, name)
        found = getattr(folder, name, None)
        if wanted is None or found is None or wanted == found:
            continue
        yield Problem(
            code="engine.model-differs",
            message=f"its {what} is {found or 'none'}, {wanted or 'none'} was planned",
            hint="build it again from the checkpoint of this recipe",
        )


def _version_problems(engine: EngineFolder, expected: Expected) -> Iterator[Problem]:
    built_on = engine.built_on
    pairs = (
        ("TensorRT-LLM", engine.version, expected.trtllm),
        ("TensorRT", built_on.tensorrt if built_on else None, expected.tensorrt),
    )
    for what, found, wanted in pairs:
        if not found or not wanted or _same_release(found, wanted):
            continue
        yield Problem(
            code="engine.version-differs",
            message=f"it was built with {what} {found}, {wanted} will load it",
            path="compile.release",
            hint=f"an engine loads only where it was built: use {what} {wanted} to"
            " build it, or an image that has the other version",
        )


def _device_problems(engine: EngineFolder, expected: Expected) -> Iterator[Problem]:
    built_on, wanted = engine.built_on, expected.compute_capability
    if built_on is None or not wanted or built_on.compute_capability == wanted:
        return
    device = f"{expected.device} ({wanted})" if expected.device else wanted
    yield Problem(
        code="engine.gpu-differs",
        message=f"it was built on {built_on.gpu} with compute capability"
        f" {built_on.compute_capability}, {device} will load it",
        path="compile.target",
        hint="build it on the instance type that will serve it",
    )


def _same_release(one: str, other: str) -> bool:
    """Whether two versions are the same, as far as both are told."""
    pairs = zip(_parts(one), _parts(other), strict=False)
    return all(left == right for left, right in list(pairs)[:_RELEASE_PARTS])


def _parts(version: str) -> list[str]:
    """The parts of a version without what a local build or a wheel adds to it."""
    plain = re.split(r"[+\-]|\.post", version.strip().lower().removeprefix("v"))[0]
    return re.sub(r"\.?(dev|rc|a|b)(?=[0-9])", r"\1", plain).split(".")


def _numbers(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:_LONGEST_LIST])
    more = len(numbers) - _LONGEST_LIST
    return f"{shown} and {more} more" if more > 0 else shown
