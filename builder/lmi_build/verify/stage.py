"""The verify stage's parameters: what is tried, and what fails the build."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lmi_build.values.stage import Estimate

if TYPE_CHECKING:
    from lmi_build.spi import Params
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe

ENTRY = "lmi_build.verify.worker:run"
# Bumped when the same artifact would be judged differently.
VERIFY_SALT = 2

# What the float reference needs; the backend's own packages come on top.
VERIFY_DISTRIBUTIONS = ("numpy", "tokenizers", "torch", "transformers")

# Tokens that go through the float model's blocks together: what a block makes of them
# stays in memory, and every further group of windows reads the blocks again.
GROUP_TOKENS = 8192
# PyTorch, transformers and ONNX Runtime, loaded and idle.
_BASE_BYTES = 520 << 20
# Float32 copies of the widest activation inside a block.
_INNER_COPIES = 3
_BLOCK = re.compile(r"\.(\d+)\.")


def verify_estimate(
    facts: ModelFacts, params: Params, *, engine_bytes: int
) -> Estimate:
    """
    The libraries, and the larger of what is in memory one after the other.

    First the float model in float32: what stands outside its blocks, the largest
    block and what that makes of the windows; all of it at once for a mixture of
    experts, whose weights are joined while they are loaded. Then the engine with both
    sides' logits of a window. The float logits of all windows wait on disk.

    Args:
        facts: The pinned model.
        params: From `verify_params`.
        engine_bytes: Of the engine, on disk and in memory.
    """
    window, num = (int(str(params[key])) for key in ("max_seq_len", "num_samples"))
    geometry = facts.geometry
    logits_bytes = 4 * window * geometry.vocab_size
    wide = geometry.intermediate_size * _INNER_COPIES + 4 * geometry.hidden_size
    float_bytes = (
        _streamed_bytes(facts)
        + logits_bytes
        + 4 * wide * min(num * window, max(window, GROUP_TOKENS))
    )
    return Estimate(
        disk_bytes=1 << 20,
        scratch_bytes=num * logits_bytes,
        ram_bytes=_BASE_BYTES + max(float_bytes, engine_bytes + 2 * logits_bytes),
    )


def _streamed_bytes(facts: ModelFacts) -> int:
    """Float32 weights in memory together, and the mapped file where that is all."""
    outside, blocks = 0, dict[int, int]()
    for tensor in facts.tensors:
        match = _BLOCK.search(tensor.name)
        if match is None:
            outside += tensor.num_elements
        else:
            index = int(match[1])
            blocks[index] = blocks.get(index, 0) + tensor.num_elements
    if any("expert" in tensor.name for tensor in facts.tensors):
        mapped = 0 if facts.dtype == "float32" else 2
        return (4 + mapped) * (outside + sum(blocks.values()))
    return 4 * (outside + max(blocks.values(), default=0))


def verify_params(recipe: Recipe) -> Params:
    """
    Lower the recipe's `verify` section.

    What the engine's bounds do not allow is lowered to them, and `notes` says so.
    """
    spec, bounds = recipe.verify, recipe.bounds
    window, answer = spec.max_seq_len, spec.max_new_tokens
    gates = spec.gates
    return {
        "prompts": list(spec.prompts),
        "max_new_tokens": min(answer, bounds.max_output_len),
        "num_samples": spec.num_samples,
        "max_seq_len": min(window, bounds.max_seq_len),
        "trust_remote_code": recipe.model.trust_remote_code,
        "gates": {
            "max_perplexity_ratio": gates.max_perplexity_ratio,
            "max_mean_kl": gates.max_mean_kl,
            "min_top1_agreement": gates.min_top1_agreement,
            "max_abs_logit_error": gates.max_abs_logit_error,
        },
        "notes": [
            f"`verify.{name}` is {asked}, `bounds.{bound}` allows {allowed}: that is"
            " what was tried"
            for name, asked, bound, allowed in (
                ("max_new_tokens", answer, "max_output_len", bounds.max_output_len),
                ("max_seq_len", window, "max_seq_len", bounds.max_seq_len),
            )
            if asked > allowed
        ],
    }
