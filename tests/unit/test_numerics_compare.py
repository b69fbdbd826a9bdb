"""Laws of comparing logits."""

from __future__ import annotations

import math

import pytest
import torch

from lmi_build.numerics.compare import DriftMeter, compare


def logits(seed: int) -> torch.Tensor:
    return torch.randn(40, 11, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.arange(40) % 11


def test_a_model_does_not_drift_from_itself() -> None:
    """Equal logits: no divergence, full agreement, equal perplexity."""
    drift = compare(logits(0), logits(0), TARGETS)

    assert drift.mean_kl == pytest.approx(0, abs=1e-7)
    assert (drift.top1_agreement, drift.max_abs_error) == (1.0, 0.0)
    assert drift.perplexity_ratio == 1.0


def test_a_constant_shift_is_not_a_drift_of_probabilities() -> None:
    """Softmax forgets a shift; only the largest logit error sees it."""
    drift = compare(logits(0), logits(0) + 3, TARGETS)

    assert drift.mean_kl == pytest.approx(0, abs=1e-6)
    assert drift.max_abs_error == pytest.approx(3, rel=1e-5)


def test_numbers_follow_their_definitions() -> None:
    """KL, agreement and perplexity equal a float64 computation."""
    p = logits(0).double().log_softmax(-1)
    q = logits(1).double().log_softmax(-1)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    nll = -float(q[torch.arange(40), TARGETS].mean())
    agree = float((p.argmax(-1) == q.argmax(-1)).double().mean())

    drift = compare(logits(0), logits(1), TARGETS)

    assert drift.mean_kl == pytest.approx(kl, rel=1e-5)
    assert drift.perplexity == pytest.approx(math.exp(nll), rel=1e-5)
    assert drift.top1_agreement == agree


def test_chunks_add_up_to_the_whole() -> None:
    """Splitting a text changes nothing but the standard error."""
    meter = DriftMeter()
    for part in (slice(0, 10), slice(10, 40)):
        meter.add(logits(0)[part], logits(1)[part], TARGETS[part])

    whole = compare(logits(0), logits(1), TARGETS)

    assert meter.result().mean_kl == pytest.approx(whole.mean_kl, rel=1e-9)
    assert meter.result().num_tokens == whole.num_tokens == 40
    assert meter.result().kl_standard_error > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_refused(value: float) -> None:
    """A broken engine must not look like a small drift."""
    broken = logits(1)
    broken[3, 4] = value

    with pytest.raises(ValueError, match="finite"):
        compare(logits(0), broken, TARGETS)


def test_nothing_compared_is_no_result() -> None:
    """Zero positions have no mean."""
    with pytest.raises(ValueError, match="no positions"):
        DriftMeter().result()
