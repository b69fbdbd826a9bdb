"""The verify stage's parameters: what is tried, and what fails the build."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmi_build.spi import Params
    from lmi_build.values.recipe import Recipe

ENTRY = "lmi_build.verify.worker:run"
# Bumped when the same artifact would be judged differently.
VERIFY_SALT = 2

# What the float reference needs; the backend's own packages come on top.
VERIFY_DISTRIBUTIONS = ("numpy", "tokenizers", "torch", "transformers")


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
