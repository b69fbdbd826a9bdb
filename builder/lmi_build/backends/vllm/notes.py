"""What a plan says of a folder that nothing is wrong with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.vllm.bounds import lower_bounds
from lmi_build.backends.vllm.kernels import candidates
from lmi_build.backends.vllm.memory import choose_share
from lmi_build.backends.vllm.recipe_checks import float_dtype
from lmi_build.values.stage import Note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.vllm.target import Target
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.quant import QuantScheme
    from lmi_build.values.recipe import Recipe

# AutoGPTQ and AutoAWQ have no other type for them.
_FLOAT16_SCALES = ("gptq", "gptq_v2", "awq")


def folder_notes(
    recipe: Recipe, model: ModelFacts, scheme: QuantScheme, target: Target
) -> Iterator[Note]:
    """
    What was derived, and what an image does otherwise than the checkpoint says.

    Args:
        recipe: One without problems.
        model: The pinned model.
        scheme: Of the checkpoint.
        target: What serves it.
    """
    lowered = lower_bounds(recipe.bounds, target)
    if target.handler.library != "vllm":
        yield _warning(
            f"the handler `{target.handler.name}` holds no request to"
            f" {lowered.max_seq_len} tokens; callers must"
        )
        return
    share = choose_share(recipe, model, scheme, target).value
    yield Note(
        level="info",
        code="compile.derived",
        message=f"max_model_len {lowered.max_seq_len}, max_num_seqs"
        f" {lowered.max_batch_size}, max_num_batched_tokens {lowered.max_num_tokens},"
        f" gpu_memory_utilization {share:g}",
    )
    dtype = float_dtype(recipe, model)
    if dtype != model.dtype:
        yield _warning(f"the model is {model.dtype}, vLLM computes it in {dtype}")
    if target.handler.fixed_num_seqs:
        yield _warning(
            f"vLLM itself schedules up to {target.handler.fixed_num_seqs} requests in"
            f" this release; the front end sends no more than {lowered.max_batch_size}"
        )
    if dtype == "bfloat16" and scheme.packing in _FLOAT16_SCALES:
        yield _warning(
            f"scales of `{scheme.packing}` weights are float16, vLLM holds them in"
            " bfloat16, with three digits fewer: `quantize.format: compressed-tensors`"
            " rounds them once, `compile.options.dtype: float16` not at all"
        )
    capability = target.instance.compute_capability
    for _, row in candidates(scheme, vllm=target.vllm, capability=capability):
        if row.keeps_activations and scheme.activation_scheme != "none":
            yield _warning(
                f"a GPU of compute capability {capability} computes these weights with"
                " float activations: slower than 8-bit ones, and not less exact"
            )
        break


def _warning(message: str) -> Note:
    return Note(level="warning", code="vllm.changed", message=message)
