"""
How far one model's answers drift from another's, measured chunk by chunk.

For each position, p are the reference's next-token probabilities and q the other's.
Reported are the mean Kullback-Leibler divergence sum p (log p - log q) in nats, the
share of positions where both prefer the same token, the largest difference of any
logit, and both perplexities on the text itself. Only sums are kept between chunks, so
the logits of a whole text, [T, V], are never held.

Shape suffixes: T positions of a chunk, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """
    The difference between two models on a text.

    Args:
        num_tokens: Positions compared.
        mean_kl: Mean KL divergence per position, in nats.
        kl_standard_error: Its standard error over the chunks; 0 with one chunk.
        top1_agreement: Share of positions with the same most likely token.
        max_abs_error: Largest difference of any logit.
        reference_perplexity: Of the reference on the text.
        perplexity: Of the other model on the text.
    """

    num_tokens: int
    mean_kl: float
    kl_standard_error: float
    top1_agreement: float
    max_abs_error: float
    reference_perplexity: float
    perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        """The other model's perplexity over the reference's."""
        return self.perplexity / self.reference_perplexity


@dataclass(kw_only=True)
class DriftMeter:
    """Adds chunks up to a `Drift`; feed it with `add`, read it with `result`."""

    num_tokens: int = 0
    sum_kl: float = 0.0
    num_agree: int = 0
    max_abs_error: float = 0.0
    sum_reference_nll: float = 0.0
    sum_nll: float = 0.0
    chunk_kls: list[float] = field(default_factory=list)

    def add(self, reference_TV: Tensor, other_TV: Tensor, target_T: Tensor) -> None:
        """
        Add the positions of one chunk.

        Args:
            reference_TV: Logits of the reference, any float dtype.
            other_TV: Logits of the other model.
            target_T: The token that follows each position, int64.

        Raises:
            ValueError: Shapes differ, the chunk is empty or a logit is not finite.
        """
        if reference_TV.shape != other_TV.shape or target_T.numel() == 0:
            raise ValueError(
                f"cannot compare {tuple(reference_TV.shape)} to {tuple(other_TV.shape)}"
            )
        reference_TV, other_TV = reference_TV.float(), other_TV.float()
        if not torch.isfinite(reference_TV).all() or not torch.isfinite(other_TV).all():
            raise ValueError("a logit is not finite")
        difference = float((reference_TV - other_TV).abs().max())
        self.max_abs_error = max(self.max_abs_error, difference)
        agree_T = reference_TV.argmax(-1) == other_TV.argmax(-1)
        self.num_agree += int(agree_T.sum())
        log_p_TV, log_q_TV = reference_TV.log_softmax(-1), other_TV.log_softmax(-1)
        target_T1 = target_T[:, None]
        self.sum_reference_nll -= float(log_p_TV.gather(1, target_T1).double().sum())
        self.sum_nll -= float(log_q_TV.gather(1, target_T1).double().sum())
        kl_T = (log_p_TV.exp() * log_p_TV.sub(log_q_TV)).sum(-1).double()
        self.sum_kl += float(kl_T.sum())
        self.chunk_kls.append(float(kl_T.mean()))
        self.num_tokens += len(target_T)

    def result(self) -> Drift:
        """
        What was added so far.

        Raises:
            ValueError: Nothing was added.
        """
        if not self.num_tokens:
            raise ValueError("no positions were compared")
        count = len(self.chunk_kls)
        mean = sum(self.chunk_kls) / count
        spread = sum((kl - mean) ** 2 for kl in self.chunk_kls)
        error = math.sqrt(spread / (count * (count - 1))) if count > 1 else 0.0
        return Drift(
            num_tokens=self.num_tokens,
            mean_kl=max(0.0, self.sum_kl / self.num_tokens),
            kl_standard_error=error,
            top1_agreement=self.num_agree / self.num_tokens,
            max_abs_error=self.max_abs_error,
            reference_perplexity=math.exp(self.sum_reference_nll / self.num_tokens),
            perplexity=math.exp(self.sum_nll / self.num_tokens),
        )


def compare(reference_TV: Tensor, other_TV: Tensor, target_T: Tensor) -> Drift:
    """`DriftMeter` for a single chunk."""
    meter = DriftMeter()
    meter.add(reference_TV, other_TV, target_T)
    return meter.result()
