"""The measures of drift against their definitions, and the gates on them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lmi_build.errors import GateFailed
from lmi_build.numerics.compare import Drift, DriftMeter
from lmi_build.verify.gates import judge, require_gates, weak_note

if TYPE_CHECKING:
    import numpy.typing as npt

VOCAB = 97


def _windows(
    num: int, length: int, noise: float
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], list[int]]]:
    random = np.random.default_rng(7)
    found = []
    for _ in range(num):
        reference = 3 * random.standard_normal((length, VOCAB))
        engine = reference + noise * random.standard_normal((length, VOCAB))
        ids = [int(i) for i in random.integers(0, VOCAB, length)]
        found.append((reference.astype(np.float32), engine.astype(np.float32), ids))
    return found


def _measure(num: int, length: int, noise: float) -> Drift:
    meter = DriftMeter()
    for reference, engine, ids in _windows(num, length, noise):
        meter.add(reference, engine, ids)
    return meter.result()


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    result: npt.NDArray[np.float64] = wide - np.log(
        np.exp(wide).sum(axis=1, keepdims=True)
    )
    return result


def test_drift_equals_its_definition() -> None:
    """
    Chunked float32 sums agree with a float64 derivation.

    Tolerance: float32 softmax rounds at 6e-8, and 97 terms add up to a few 1e-6.
    """
    drift = _measure(num=3, length=150, noise=0.3)
    window_kl, nll, nll_engine, same, worst = [], [], [], 0, 0.0
    for reference, engine, ids in _windows(3, 150, 0.3):
        p, q = _log_softmax(reference), _log_softmax(engine)
        window_kl.append((np.exp(p) * (p - q)).sum(axis=1).mean())
        rows = np.arange(149)
        nll.append(-p[rows, ids[1:]])
        nll_engine.append(-q[rows, ids[1:]])
        same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        worst = max(worst, float(np.abs(reference - engine).max()))

    assert drift.mean_kl == pytest.approx(np.mean(window_kl), rel=1e-5)
    error = np.std(window_kl, ddof=1) / math.sqrt(3)
    assert drift.mean_kl_standard_error == pytest.approx(error, rel=1e-4)
    assert drift.top1_agreement == same / 450
    assert drift.max_abs_logit_error == worst
    expected = math.exp(np.concatenate(nll).mean())
    assert drift.reference_perplexity == pytest.approx(expected, rel=1e-6)
    expected = math.exp(np.concatenate(nll_engine).mean())
    assert drift.engine_perplexity == pytest.approx(expected, rel=1e-6)
    assert (drift.num_windows, drift.num_tokens) == (3, 450)


def test_equal_logits_have_no_drift() -> None:
    """A perfect engine measures exactly nothing."""
    drift = _measure(num=2, length=65, noise=0.0)

    assert drift.max_abs_logit_error == 0.0
    assert drift.mean_kl == pytest.approx(0.0, abs=1e-6)
    assert drift.top1_agreement == 1.0
    assert drift.perplexity_ratio == 1.0


def test_a_constant_shift_is_no_drift_in_probability() -> None:
    """Softmax does not see a constant; the largest logit error does."""
    meter = DriftMeter()
    for reference, _, ids in _windows(1, 70, 0.0):
        meter.add(reference, reference + np.float32(2.0), ids)
    drift = meter.result()

    assert drift.mean_kl == pytest.approx(0.0, abs=1e-5)
    assert drift.max_abs_logit_error == pytest.approx(2.0, abs=1e-5)


def test_more_noise_is_more_drift() -> None:
    """KL and perplexity grow with noise, agreement falls."""
    small, large = (_measure(num=2, length=200, noise=n) for n in (0.1, 1.0))

    assert small.mean_kl < large.mean_kl
    assert small.top1_agreement > large.top1_agreement
    assert small.max_abs_logit_error < large.max_abs_logit_error


def test_padded_vocabulary_is_cut() -> None:
    """An engine may have more columns than the model; they are not compared."""
    whole, padded = DriftMeter(), DriftMeter()
    for reference, engine, ids in _windows(1, 40, 0.2):
        whole.add(reference, engine, ids)
        extra = np.zeros((40, 5), np.float32)
        padded.add(reference, np.concatenate([engine, extra], axis=1), ids)

    assert whole.result() == padded.result()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_logits_are_refused(bad: float) -> None:
    """A logit that is not finite is an error, not a large number."""
    reference, engine, ids = _windows(1, 10, 0.1)[0]
    engine[3, 4] = bad

    with pytest.raises(ValueError, match="not finite"):
        DriftMeter().add(reference, engine, ids)


def test_shapes_must_belong_together() -> None:
    """Rows, tokens and vocabulary must fit each other; one token says nothing."""
    reference, engine, ids = _windows(1, 10, 0.1)[0]
    with pytest.raises(ValueError, match="belong together"):
        DriftMeter().add(reference, engine[:9], ids)
    with pytest.raises(ValueError, match="outside a vocabulary"):
        DriftMeter().add(reference, engine, [*ids[:9], VOCAB])
    meter = DriftMeter()
    meter.add(reference[:1], engine[:1], ids[:1])
    with pytest.raises(ValueError, match="two tokens"):
        meter.result()


GATES = {
    "max_perplexity_ratio": 1.0,
    "max_mean_kl": 1e-9,
    "min_top1_agreement": 1.0,
    "max_abs_logit_error": 1e-9,
}


def test_every_missed_gate_is_named_with_numbers() -> None:
    """All missed gates at once, each with measured, allowed and a way out."""
    drift = _measure(num=2, length=200, noise=1.0)
    rows = judge(drift, GATES)
    with pytest.raises(GateFailed) as caught:
        require_gates(rows, drift)

    assert caught.value.exit_code == 5
    assert caught.value.code == "verify.gate-missed"
    for gate in GATES:
        assert f"{gate}: " in caught.value.message
        assert any(gate in hint for hint in caught.value.hints)
    assert f"KL {drift.mean_kl:.4f}" in caught.value.message


def test_suggested_gates_would_pass() -> None:
    """The value offered in a hint is one that the same artifact meets."""
    drift = _measure(num=2, length=200, noise=1.0)
    with pytest.raises(GateFailed) as caught:
        require_gates(judge(drift, GATES), drift)
    offered = dict(
        hint.partition("verify.gates.")[2].rstrip("`").split(": ")
        for hint in caught.value.hints
        if "verify.gates." in hint
    )
    loosened = {gate: float(value) for gate, value in offered.items()}

    assert set(loosened) == set(GATES)
    require_gates(judge(drift, loosened), drift)


def test_a_gate_within_the_interval_is_judged_on_weak_evidence() -> None:
    """The value decides; the note names the windows that would settle it."""
    drift = _measure(num=4, length=100, noise=0.5)
    span = drift.mean_kl_interval
    assert span is not None
    near = (drift.mean_kl + span.high) / 2
    (row,) = judge(drift, {"max_mean_kl": near})
    (far,) = judge(drift, {"max_mean_kl": 2 * span.high})
    needed = row.windows_needed(10_000)

    assert (row.met, row.weak, far.weak) == (True, True, False)
    assert 4 < needed <= 30
    assert f"`verify.num_samples: {needed}`" in weak_note(row, most=10_000)
    assert "would not settle" in weak_note(row, most=needed - 1)
    require_gates([row], drift)


def test_intervals_stand_in_the_message() -> None:
    """A missed gate shows its interval; so does every other measure."""
    drift = _measure(num=3, length=100, noise=1.0)
    with pytest.raises(GateFailed) as caught:
        require_gates(judge(drift, {"max_mean_kl": 1e-9}), drift, worst=["worst: x"])

    assert re.search(
        r"max_mean_kl: \S+ \[\S+, \S+\], allowed at most", caught.value.message
    )
    assert "95% intervals" in caught.value.message
    assert "worst: x" in caught.value.message


def test_gates_that_are_not_set_do_not_judge() -> None:
    """None is no gate; a met gate passes silently."""
    drift = _measure(num=1, length=50, noise=0.1)
    rows = judge(drift, {**dict.fromkeys(GATES), "max_mean_kl": 10.0})

    assert [row.gate for row in rows] == ["max_mean_kl"]
    require_gates(rows, drift)


def test_unknown_gates_are_not_ignored() -> None:
    """A gate that nothing measures is an error in this program."""
    with pytest.raises(KeyError):
        judge(_measure(num=1, length=50, noise=0.1), {"max_luck": 1.0})
