r"""
How far an engine's logits are from the float model's, window by window.

Logits come as NumPy arrays, from whatever made them; `numpy()` of a CPU tensor is one
without a copy.

Shapes: T positions of a window, V entries of the vocabulary, C rows of a chunk.
Sums run in float64 over chunks of rows, so that memory does not grow with T * V.

Definitions, with p the float model's distribution and q the engine's:
KL = mean over positions of sum_v p_v (log p_v - log q_v), in nats.
Perplexity = exp of the mean negative log likelihood of each next token; the ratio is
exp of the mean difference of the two, which is taken token by token, so that what is
hard about the text for both models cancels and does not widen the interval.
Intervals come from the spread of the windows, see `numerics.intervals`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from lmi_build.numerics.intervals import Interval, mean_interval, share_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Logits: TypeAlias = npt.NDArray[np.float32]

# Three float32 work arrays of this many rows stay within the last-level cache for
# common vocabularies (64 * 49152 * 4 bytes = 12 MiB).
_CHUNK_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """
    Engine against float model; every interval is None when there is one window.

    Args:
        num_windows: Held-out sequences compared.
        num_tokens: Positions compared.
        max_abs_logit_error: Largest difference of any logit; an extreme, so that more
            windows can only raise it, and no interval is given.
        mean_kl: Mean KL divergence per position, in nats.
        mean_kl_standard_error: Over windows; NaN-free: 0 when there is one.
        mean_kl_interval: Of the mean over windows, by Student's t.
        top1_agreement: Share of positions with the same most likely token.
        top1_agreement_interval: Wilson's, for the effective number of positions.
        reference_perplexity: Of the float model.
        engine_perplexity: Of the engine.
        perplexity_ratio_interval: Student's t on the windows' mean difference of log
            likelihoods, then exp.
    """

    num_windows: int
    num_tokens: int
    max_abs_logit_error: float
    mean_kl: float
    mean_kl_standard_error: float
    mean_kl_interval: Interval | None
    top1_agreement: float
    top1_agreement_interval: Interval | None
    reference_perplexity: float
    engine_perplexity: float
    perplexity_ratio_interval: Interval | None

    @property
    def perplexity_ratio(self) -> float:
        """Engine over float model; 1 is no loss."""
        return self.engine_perplexity / self.reference_perplexity


@dataclass(slots=True)
class _Sums:
    """What is added up over the rows of one window."""

    num_rows: int = 0
    num_labels: int = 0
    num_same: int = 0
    kl: float = 0.0
    reference_nll: float = 0.0
    engine_nll: float = 0.0


@dataclass(slots=True)
class DriftMeter:
    """Adds up windows; `result` closes the books."""

    _windows: list[_Sums] = field(default_factory=list)
    _max_abs: float = 0.0

    def add(self, reference_TV: Logits, engine_TV: Logits, ids: Sequence[int]) -> None:
        """
        Add one window.

        Args:
            reference_TV: Logits of the float model, `[T, V]`.
            engine_TV: Logits of the engine; a padded vocabulary is cut.
            ids: The window's tokens, T of them.

        Raises:
            ValueError: The shapes do not belong together, or a logit is not finite.
        """
        num_rows, vocab = reference_TV.shape
        if len(ids) != num_rows or engine_TV.shape[0] != num_rows:
            raise ValueError(
                f"{len(ids)} tokens, {num_rows} reference rows and"
                f" {engine_TV.shape[0]} engine rows do not belong together"
            )
        width = min(vocab, engine_TV.shape[1])
        if max(ids) >= width:
            raise ValueError(f"token {max(ids)} is outside a vocabulary of {width}")
        sums = _Sums()
        for start in range(0, num_rows, _CHUNK_ROWS):
            rows = slice(start, min(start + _CHUNK_ROWS, num_rows))
            labels = np.asarray(ids[rows.start + 1 : rows.stop + 1], dtype=np.int64)
            self._add_rows(
                sums, reference_TV[rows, :width], engine_TV[rows, :width], labels
            )
        self._windows.append(sums)

    def _add_rows(
        self,
        sums: _Sums,
        reference_CV: Logits,
        engine_CV: Logits,
        labels: npt.NDArray[np.int64],
    ) -> None:
        difference_CV = reference_CV - engine_CV
        worst = float(np.abs(difference_CV).max())
        if not math.isfinite(worst):
            raise ValueError("a logit is not finite")
        self._max_abs = max(self._max_abs, worst)
        p_CV, reference_lse = _exp_normalised(reference_CV)
        engine_lse = _log_sum_exp(engine_CV)
        # log p - log q, so that rounding grows with the drift and not with the logits.
        difference_CV += (engine_lse - reference_lse)[:, None].astype(np.float32)
        np.multiply(p_CV, difference_CV, out=difference_CV)
        kl = difference_CV.sum(axis=1, dtype=np.float64)
        same = reference_CV.argmax(axis=1) == engine_CV.argmax(axis=1)
        rows = np.arange(len(labels))
        reference = reference_lse[: len(labels)] - reference_CV[rows, labels]
        engine = engine_lse[: len(labels)] - engine_CV[rows, labels]
        sums.num_rows += len(kl)
        sums.num_labels += len(labels)
        sums.num_same += int(same.sum())
        sums.kl += float(np.maximum(kl, 0.0).sum())
        sums.reference_nll += float(reference.sum())
        sums.engine_nll += float(engine.sum())

    def result(self) -> Drift:
        """
        The measures over all windows added.

        Raises:
            ValueError: Fewer than two tokens were compared.
        """
        windows = self._windows
        num_rows = sum(window.num_rows for window in windows)
        num_labels = sum(window.num_labels for window in windows)
        if num_labels == 0:
            raise ValueError("no next token was compared: windows need two tokens")
        num = len(windows)
        mean_kl = sum(window.kl for window in windows) / num_rows
        top1 = sum(window.num_same for window in windows) / num_rows
        reference_nll = sum(window.reference_nll for window in windows) / num_labels
        engine_nll = sum(window.engine_nll for window in windows) / num_labels
        kl_error = _standard_error([w.kl / w.num_rows for w in windows])
        top1_error = _standard_error([w.num_same / w.num_rows for w in windows])
        loss_error = _standard_error(
            [
                (w.engine_nll - w.reference_nll) / w.num_labels
                for w in windows
                if w.num_labels
            ]
        )
        loss = mean_interval(engine_nll - reference_nll, loss_error, num)
        return Drift(
            num_windows=num,
            num_tokens=num_rows,
            max_abs_logit_error=self._max_abs,
            mean_kl=mean_kl,
            mean_kl_standard_error=kl_error,
            mean_kl_interval=_not_negative(mean_interval(mean_kl, kl_error, num)),
            top1_agreement=top1,
            top1_agreement_interval=share_interval(
                top1, top1_error, num_windows=num, num_tokens=num_rows
            ),
            reference_perplexity=math.exp(reference_nll),
            engine_perplexity=math.exp(engine_nll),
            perplexity_ratio_interval=loss
            and Interval(low=math.exp(loss.low), high=math.exp(loss.high)),
        )


def _standard_error(means: Sequence[float]) -> float:
    """Of the mean of the windows' means; 0 for one window."""
    if len(means) < 2:  # noqa: PLR2004 - a spread needs two
        return 0.0
    return float(np.std(means, ddof=1)) / math.sqrt(len(means))


def _not_negative(interval: Interval | None) -> Interval | None:
    """KL is never below 0; the interval's symmetry does not know that."""
    return interval and Interval(low=max(0.0, interval.low), high=interval.high)


def _log_sum_exp(logits_CV: Logits) -> npt.NDArray[np.float64]:
    top = logits_CV.max(axis=1, keepdims=True)
    shifted = logits_CV - top
    np.exp(shifted, out=shifted)
    lse = np.log(shifted.sum(axis=1, dtype=np.float64)) + top[:, 0]
    return np.asarray(lse, dtype=np.float64)


def _exp_normalised(
    logits_CV: Logits,
) -> tuple[Logits, npt.NDArray[np.float64]]:
    """The softmax, and the logarithm of its denominator."""
    top = logits_CV.max(axis=1, keepdims=True)
    p_CV = logits_CV - top
    np.exp(p_CV, out=p_CV)
    total = p_CV.sum(axis=1, dtype=np.float64)
    p_CV /= total[:, None].astype(np.float32)
    return p_CV, np.log(total) + top[:, 0]
