"""Laws of judging how many calibration tokens there are."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lmi_build.errors import Problem
from lmi_build.plan.hessian import hessian_advice
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
