"""Drift against its definition, derived again in float64 for any logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmi_build.numerics.compare import DriftMeter
from lmi_build.numerics.intervals import Interval, student_t

if TYPE_CHECKING:
    import numpy.typing as npt


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(1, 6),
    length=st.integers(2, 140),
    vocab=st.integers(3, 300),
    scale=st.sampled_from([0.1, 3.0, 20.0]),
    noise=st.sampled_from([1e-3, 0.1, 2.0]),
    shift=st.sampled_from([0.0, -50.0]),
)
def test_every_measure_is_its_definition(
    seed: int,
    num: int,
    length: int,
    vocab: int,
    scale: float,
    noise: float,
    shift: float,
) -> None:
    """
    KL, top-1, perplexities and all three intervals.

    Tolerance: float32 logits of size 50 are rounded to 4e-6, so a log probability
    cannot be better; KL is a mean of such differences.
    """
    random = np.random.default_rng(seed)
    meter = DriftMeter()
    kl, same, loss, nll = [], [], [], []
    for _ in range(num):
        p_TV = (scale * random.standard_normal((length, vocab))).astype(np.float32)
        q_TV = (p_TV + noise * random.standard_normal(p_TV.shape) + shift).astype(
            np.float32
        )
        ids = [int(i) for i in random.integers(0, vocab, length)]
        meter.add(p_TV, q_TV, ids)
        p, q = _log_softmax(p_TV), _log_softmax(q_TV)
        kl.append((np.exp(p) * (p - q)).sum(axis=1).mean())
        same.append((p_TV.argmax(axis=1) == q_TV.argmax(axis=1)).mean())
        rows = np.arange(length - 1)
        nll.append(-p[rows, ids[1:]].mean())
        loss.append((p[rows, ids[1:]] - q[rows, ids[1:]]).mean())
    drift = meter.result()

    assert drift.mean_kl == pytest.approx(np.mean(kl), rel=1e-4, abs=4e-6)
    assert drift.top1_agreement == pytest.approx(np.mean(same), rel=1e-12)
    assert math.log(drift.reference_perplexity) == pytest.approx(np.mean(nll), abs=5e-6)
    assert math.log(drift.perplexity_ratio) == pytest.approx(np.mean(loss), abs=5e-6)
    if num == 1:
        assert drift.mean_kl_interval is None
        assert drift.perplexity_ratio_interval is None
        assert drift.top1_agreement_interval is None
        return
    quantile = student_t(num - 1)
    half = quantile * np.std(kl, ddof=1) / math.sqrt(num)
    _close(drift.mean_kl_interval, max(0, np.mean(kl) - half), np.mean(kl) + half)
    half = quantile * np.std(loss, ddof=1) / math.sqrt(num)
    _close(
        drift.perplexity_ratio_interval,
        math.exp(np.mean(loss) - half),
        math.exp(np.mean(loss) + half),
    )
    span = drift.top1_agreement_interval
    assert span is not None
    assert span.low <= drift.top1_agreement <= span.high


def _close(interval: Interval | None, low: float, high: float) -> None:
    """The ends agree; a quantile of up to 12.7 magnifies the rounding of the mean."""
    assert interval is not None
    assert interval.low == pytest.approx(low, rel=2e-4, abs=1e-4)
    assert interval.high == pytest.approx(high, rel=2e-4, abs=1e-4)
