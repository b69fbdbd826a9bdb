"""The `serving.properties` with which a release loads an artifact as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.trtllm.front_ends import front_end
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.backends.trtllm.layout import Placement
    from lmi_build.catalog.releases import Release

# The toolkit of the releases up to 0.32 has names of its own for float types.
_TOOLKIT_DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
_ASYNC_HANDLER = {
    # `trtllm` here, or `engine=MPI`, would start one server for each rank.
    "option.rolling_batch": "disable",
    # Nothing turns it on where `option.entryPoint` is set.
    "option.async_mode": "true",
}
_TOOLKIT_HANDLER = {
    # Set, so that no `config.json` can turn it off.
    "option.rolling_batch": "trtllm",
    "option.mpi_mode": "true",
}


def serving_properties(
    release: Release,
    placement: Placement,
    *,
    dtype: str,
    timeouts: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """
    Every entry of the file that this backend answers for.

    A bound is written under the key that the release reads, and left out where it reads
    none; `config.pbtxt` or the engine itself holds it then.

    Args:
        release: Row of the catalogue.
        placement: The artifact, with its bounds and its parallelism.
        dtype: Float type of what is not quantized, such as `float16`.
        timeouts: Seconds by property without `option.`, such as
            `model_loading_timeout`.

    Raises:
        ValueError: `serving_problems` has something to say about the same arguments.
    """
    problem = next(serving_problems(release, placement), None)
    if problem is not None:
        raise ValueError(problem.message)
    front = front_end(release.lmi)
    entries = {"engine": front.engine, "option.entryPoint": front.entry_point}
    entries |= _TOOLKIT_HANDLER if front.layout == "triton" else _ASYNC_HANDLER
    values = _values(release, placement, dtype)
    for name, key in release.properties.items():
        if name in values:
            entries[f"option.{key}"] = values[name]
    if front.pipeline_parallel:
        # What counts GPUs reads this key, whichever one the handler reads.
        degree = str(placement.pipeline_parallel_size)
        entries["option.pipeline_parallel_degree"] = degree
    for name, seconds in (timeouts or {}).items():
        entries[f"option.{name}"] = str(seconds)
    return entries


def serving_problems(release: Release, placement: Placement) -> Iterator[Problem]:
    """Every reason why one release's container cannot serve an artifact."""
    if not release.lmi:
        yield Problem(
            code="serve.no-image",
            message=f"no LMI image has {release.name}",
            path="compile.release",
            hint="use `release: djl-tensorrtllm-0.33.0`, or serve the artifact with"
            " TensorRT-LLM itself",
            unsupported=True,
        )
        return
    if placement.kind == "checkpoint":
        raise ValueError("a checkpoint is not served")
    front = front_end(release.lmi)
    if front.defect:
        yield Problem(
            code="serve.release-broken",
            message=f"LMI {release.lmi} serves no TensorRT-LLM: {front.defect}",
            path="compile.release",
            hint="use `release: djl-tensorrtllm-0.33.0`",
            unsupported=True,
        )
    elif not release.properties:
        yield Problem(
            code="serve.no-image",
            message=f"no image of {release.name} was published",
            path="compile.release",
            hint="use `release: djl-tensorrtllm-0.33.0`",
            unsupported=True,
        )
    if placement.pipeline_parallel_size > 1 and not front.pipeline_parallel:
        yield Problem(
            code="serve.pipeline-unsupported",
            message=f"LMI {release.lmi} starts no more processes than"
            f" `tensor_parallel_size`, {placement.tensor_parallel_size};"
            f" {placement.world_size} are needed",
            path="compile.pipeline_parallel_size",
            hint="write `pipeline_parallel_size: 1`, or use a release from 0.29.0 on",
            unsupported=True,
        )


def _values(release: Release, placement: Placement, dtype: str) -> dict[str, str]:
    """What is promised, by our names, as the release spells values."""
    bounds = placement.bounds
    pytorch = placement.kind == "hf-quantized"
    toolkit = release.layout == "triton"
    values = {
        "max_input_len": str(bounds.max_input_len),
        "max_output_len": str(bounds.max_output_len),
        "max_seq_len": str(bounds.max_seq_len),
        "max_batch_size": str(bounds.max_batch_size),
        "max_num_tokens": str(bounds.max_num_tokens),
        "max_beam_width": str(bounds.max_beam_width),
        "tensor_parallel_size": str(placement.tensor_parallel_size),
        "pipeline_parallel_size": str(placement.pipeline_parallel_size),
        "dtype": _TOOLKIT_DTYPES.get(dtype, dtype) if toolkit else dtype,
        "kv_cache_fraction": str(placement.kv_cache_fraction),
        "kv_cache_reuse": _word(yes=placement.kv_cache_reuse),
        "chunked_context": _word(yes=bounds.chunked_context),
    }
    if placement.attention_window:
        # One number for every layer, as JSON.
        values["attention_window"] = f"[{placement.attention_window}]"
    return {**values, "backend": "pytorch"} if pytorch else values


def _word(*, yes: bool) -> str:
    return "true" if yes else "false"
