"""The verify stage's parameters: what is tried, and what fails the build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.values.model import DTYPE_BITS
from lmi_build.values.stage import Estimate

if TYPE_CHECKING:
    from lmi_build.spi import Params
    from lmi_build.values.model import ModelFacts
    from lmi_build.values.recipe import Recipe

ENTRY = "lmi_build.verify.worker:run"
# Bumped when the same artifact would be judged differently.
VERIFY_SALT = 1

# Interpreter, torch and transformers, before a weight is loaded; measured.
_BASE_RAM_BYTES = 450 << 20
_FLOAT32_BYTES = 4


def verify_params(recipe: Recipe) -> Params:
    """
    Lower the recipe's `verify` section.

    A held-out sequence is never longer than the engine's own bound.
    """
    spec, bounds = recipe.verify, recipe.bounds
    gates = spec.gates
    return {
        "prompts": list(spec.prompts),
        "max_new_tokens": min(spec.max_new_tokens, bounds.max_output_len),
        "num_samples": spec.num_samples,
        "max_seq_len": min(spec.max_seq_len, bounds.max_input_len),
        "trust_remote_code": recipe.model.trust_remote_code,
        "gates": {
            "max_perplexity_ratio": gates.max_perplexity_ratio,
            "max_mean_kl": gates.max_mean_kl,
            "min_top1_agreement": gates.min_top1_agreement,
            "max_abs_logit_error": gates.max_abs_logit_error,
        },
    }


def verify_estimate(recipe: Recipe, facts: ModelFacts) -> Estimate:
    """The float model in float32, the engine, and two windows of logits."""
    elements = sum(
        tensor.num_elements
        for tensor in facts.tensors
        if DTYPE_BITS.get(tensor.dtype, 16) >= 8  # noqa: PLR2004 - bits of a byte
    )
    window = min(recipe.verify.max_seq_len, recipe.bounds.max_input_len)
    logits = 2 * window * facts.geometry.vocab_size * _FLOAT32_BYTES
    weights = elements * _FLOAT32_BYTES
    return Estimate(
        disk_bytes=1 << 20, ram_bytes=_BASE_RAM_BYTES + 2 * weights + logits
    )
