r"""
How far an engine's logits are from the float model's, window by window.

Logits come as NumPy arrays, from whatever made them; `numpy()` of a CPU tensor is one
without a copy.

Shapes: T positions of a window, V entries of the vocabulary, C rows of a chunk.
Sums run in float64 over chunks of rows, so that memory does not grow with T * V.

Definitions, with p the float model's distribution and q the engine's:
KL = mean over positions of sum_v p_v (log p_v - log q_v), in nats; its standard
error comes from the windows' means, which unlike tokens are nearly independent.
Perplexity = exp of the mean negative log likelihood of each next token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

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
    Engine against float model.

    Args:
        num_windows: Held-out sequences compared.
        num_tokens: Positions compared.
        max_abs_logit_error: Largest difference of any logit.
        mean_kl: Mean KL divergence per position, in nats.
        mean_kl_standard_error: Over windows; NaN-free: 0 when there is one.
        top1_agreement: Share of positions with the same most likely token.
        reference_perplexity: Of the float model.
        engine_perplexity: Of the engine.
    """

    num_windows: int
    num_tokens: int
    max_abs_logit_error: float
    mean_kl: float
    mean_kl_standard_error: float
    top1_agreement: float
    reference_perplexity: float
    engine_perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        """Engine over float model; 1 is no loss."""
        return self.engine_perplexity / self.reference_perplexity


@dataclass(slots=True)
class DriftMeter:
    """Adds up windows; `result` closes the books."""

    _window_kl: list[float] = field(default_factory=list)
    _num_rows: int = 0
    _num_labels: int = 0
    _num_same: int = 0
    _kl_sum: float = 0.0
    _max_abs: float = 0.0
    _reference_nll: float = 0.0
    _engine_nll: float = 0.0

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
        kl_sum = 0.0
        for start in range(0, num_rows, _CHUNK_ROWS):
            rows = slice(start, min(start + _CHUNK_ROWS, num_rows))
            labels = np.asarray(ids[rows.start + 1 : rows.stop + 1], dtype=np.int64)
            kl_sum += self._add_rows(
                reference_TV[rows, :width], engine_TV[rows, :width], labels
            )
        self._window_kl.append(kl_sum / num_rows)
        self._kl_sum += kl_sum
        self._num_rows += num_rows

    def _add_rows(
        self, reference_CV: Logits, engine_CV: Logits, labels: npt.NDArray[np.int64]
    ) -> float:
        difference_CV = reference_CV - engine_CV
        worst = float(np.abs(difference_CV).max())
        if not math.isfinite(worst):
            raise ValueError("a logit is not finite")
        p_CV, reference_lse = _exp_normalised(reference_CV)
        engine_lse = _log_sum_exp(engine_CV)
        np.multiply(p_CV, difference_CV, out=difference_CV)
        kl = difference_CV.sum(axis=1, dtype=np.float64) + engine_lse - reference_lse
        self._max_abs = max(self._max_abs, worst)
        same = reference_CV.argmax(axis=1) == engine_CV.argmax(axis=1)
        self._num_same += int(same.sum())
        rows = np.arange(len(labels))
        reference = reference_lse[: len(labels)] - reference_CV[rows, labels]
        engine = engine_lse[: len(labels)] - engine_CV[rows, labels]
        self._reference_nll += float(reference.sum())
        self._engine_nll += float(engine.sum())
        self._num_labels += len(labels)
        return float(np.maximum(kl, 0.0).sum())

    def result(self) -> Drift:
        """
        The measures over all windows added.

        Raises:
            ValueError: Fewer than two tokens were compared.
        """
        if self._num_labels == 0:
            raise ValueError("no next token was compared: windows need two tokens")
        windows = np.asarray(self._window_kl)
        spread = float(windows.std(ddof=1)) if len(windows) > 1 else 0.0
        return Drift(
            num_windows=len(windows),
            num_tokens=self._num_rows,
            max_abs_logit_error=self._max_abs,
            mean_kl=self._kl_sum / self._num_rows,
            mean_kl_standard_error=spread / math.sqrt(len(windows)),
            top1_agreement=self._num_same / self._num_rows,
            reference_perplexity=math.exp(self._reference_nll / self._num_labels),
            engine_perplexity=math.exp(self._engine_nll / self._num_labels),
        )


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
