"""Laws of judging how many calibration tokens there are."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lmi_build.errors import Problem
from lmi_build.plan.hessian import (
    calibration_notes,
    calibration_problems,
    hessian_advice,
)
from lmi_build.values.model import ModelFacts, geometry_from_config
from lmi_build.values.recipe import CalibrationSpec, QuantSpec
from lmi_build.values.stage import Note


@given(tokens=st.integers(1, 10**6), width=st.integers(1, 10**5))
def test_the_more_text_the_milder_the_verdict(tokens: int, width: int) -> None:
    """Refused below an eighth of a token a channel, doubted below one."""
    found = hessian_advice(num_tokens=tokens, widest_input=width, seq_len=512)

    if 8 * tokens < width:
        assert isinstance(found, Problem)
    elif tokens < width:
        assert isinstance(found, Note)
        assert found.level == "warning"
    else:
        assert found is None


def test_the_advice_is_concrete() -> None:
    """The number to write is four tokens a channel, in whole windows."""
    refused = hessian_advice(num_tokens=64, widest_input=14336, seq_len=512)
    doubted = hessian_advice(num_tokens=8192, widest_input=14336, seq_len=512)
    wanted = math.ceil(4 * 14336 / 512)

    assert isinstance(refused, Problem)
    assert refused.path == "quantize.calibration.num_samples"
    assert f"raise it to {wanted} (57,344 tokens)" in refused.hint
    assert isinstance(doubted, Note)
    assert "6,144 directions" in doubted.message
    assert f"num_samples: {wanted}`" in doubted.message


def test_an_expert_sees_its_share() -> None:
    """Two of eight experts a token: a quarter of the tokens, and only a doubt."""
    found = hessian_advice(
        num_tokens=32768, widest_input=14336, seq_len=512, share=2 / 8
    )

    assert isinstance(found, Note)
    assert "8,192 of 32,768" in found.message
    assert f"num_samples: {4 * 4 * 14336 // 512}`" in found.message


def sparse(**config: int) -> ModelFacts:
    """A decoder as wide as Mixtral, with these keys in its config."""
    whole = {
        "num_hidden_layers": 2,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        **config,
    }
    return ModelFacts(
        kind="folder",
        source="x",
        location="x",
        revision="",
        geometry=geometry_from_config(whole),
        config=whole,
        files=(),
        tensors=(),
        dtype="bfloat16",
    )


GPTQ = QuantSpec(method="gptq", calibration=CalibrationSpec())


def test_routers_are_read_from_the_config() -> None:
    """The default text is enough for a dense model, and little for its experts."""
    experts = sparse(num_local_experts=8, num_experts_per_tok=2)
    narrow = sparse(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=1024)

    assert calibration_notes(GPTQ, sparse()) == ()
    (note,) = calibration_notes(GPTQ, experts)
    assert note.code == "calibration.few-tokens"
    assert "evenly routed" in note.message
    assert calibration_notes(GPTQ, narrow) == ()


def test_only_second_order_methods_are_judged() -> None:
    """Ranges and scales need no full rank."""
    little = CalibrationSpec(num_samples=1, max_seq_len=8)
    model = sparse()
    for spec, count in (
        (replace(GPTQ, calibration=little), 1),
        (QuantSpec(method="awq", then_gptq=True, calibration=little), 1),
        (QuantSpec(method="awq", calibration=little), 0),
        (QuantSpec(method="int8", calibration=little), 0),
        (QuantSpec(method="gptq"), 0),
    ):
        assert len(list(calibration_problems(spec, model))) == count, spec.method
