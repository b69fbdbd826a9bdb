"""The verify stage's parameters."""

from __future__ import annotations

from lmi_build.values.bounds import Bounds
from lmi_build.values.recipe import Gates, VerifySpec
from lmi_build.verify.stage import verify_params
from packed import sample_recipe


def test_lengths_never_exceed_the_bounds_and_say_so() -> None:
    """What the engine would refuse is lowered, with a note for each."""
    recipe = sample_recipe(
        bounds=Bounds(max_input_len=48, max_output_len=16),
        verify=VerifySpec(max_seq_len=512, max_new_tokens=32),
    )
    params = verify_params(recipe)

    assert (params["max_seq_len"], params["max_new_tokens"]) == (64, 16)
    notes = params["notes"]
    assert isinstance(notes, list)
    assert [str(note).split("`")[1] for note in notes] == [
        "verify.max_new_tokens",
        "verify.max_seq_len",
    ]


def test_lengths_within_the_bounds_are_kept() -> None:
    """Nothing is changed, nothing is said."""
    recipe = sample_recipe(
        bounds=Bounds(max_input_len=512, max_output_len=128),
        verify=VerifySpec(gates=Gates(max_mean_kl=0.2)),
    )
    params = verify_params(recipe)

    assert (params["max_seq_len"], params["notes"]) == (512, [])
    assert params["gates"] == {
        "max_perplexity_ratio": None,
        "max_mean_kl": 0.2,
        "min_top1_agreement": None,
        "max_abs_logit_error": None,
    }
