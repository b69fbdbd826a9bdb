"""The verify stage's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmi_build.errors import SourceInvalid
from lmi_build.values.bounds import Bounds
from lmi_build.values.model import TensorFact
from lmi_build.values.recipe import Gates, VerifySpec
from lmi_build.verify.checks import check_windows
from lmi_build.verify.stage import verify_estimate, verify_params
from packed import sample_facts, sample_recipe

if TYPE_CHECKING:
    from pathlib import Path


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


def _tensors(*named: tuple[str, int]) -> tuple[TensorFact, ...]:
    return tuple(
        TensorFact(name=name, dtype="bfloat16", shape=(count,), file="m")
        for name, count in named
    )


def test_memory_is_one_block_and_not_the_model() -> None:
    """A hundred blocks need what two need; one expert more means the whole model."""
    params = verify_params(sample_recipe())
    size = 50_000_000
    few, many, mixed = (
        verify_estimate(
            sample_facts(tensors=_tensors(("model.embed.weight", size), *blocks)),
            params,
            engine_bytes=1,
        )
        for blocks in (
            [(f"model.layers.{n}.up.weight", size) for n in range(2)],
            [(f"model.layers.{n}.up.weight", size) for n in range(100)],
            [(f"model.layers.{n}.experts.0.up.weight", size) for n in range(100)],
        )
    )

    assert few == many
    assert mixed.ram_bytes - many.ram_bytes == 6 * 101 * size - 4 * 2 * size
    assert many.scratch_bytes == 4 * 8 * 96 * 300


def test_memory_of_a_large_engine_decides() -> None:
    """The two are never in memory together: the larger one counts."""
    params = verify_params(sample_recipe())
    facts = sample_facts(tensors=_tensors(("model.embed.weight", 10**9)))
    small, same, large = (
        verify_estimate(facts, params, engine_bytes=size).ram_bytes
        for size in (1, 10**9, 10**10)
    )

    assert small == same < large


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """The last row of the embedding is a token; one more is another model's."""
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 8}}')
    check_windows([[1, 2], [7]], tmp_path)

    with pytest.raises(SourceInvalid, match="token 8, the embedding has 8") as caught:
        check_windows([[1, 2], [8]], tmp_path)
    assert caught.value.code == "calibration.tokenizer"
