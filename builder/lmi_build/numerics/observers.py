"""
What calibration remembers of a layer's inputs: X' X, summed over tokens.

H is symmetric, so only blocks on and above the diagonal are computed; the rest is
mirrored once at the end. Products are float32 throughout: a bfloat16 result is not
safe, because the inputs of attention's output projection are nearly rank-deficient
and rounding then makes H indefinite (measured: Cholesky fails on 2 of 12 real layers).

Shape suffixes: T tokens, I input channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Width of a block of H, by measurement on AVX-512 (2 threads, chunks of 512 tokens,
# counting the full product: 129 and 153 GFLOP per CPU second at I = 576 and 1536,
# against 103 and 128 for twice the width).
_BLOCK_WIDTH = 288


class HessianObserver:
    """
    Sums X' X over chunks of tokens.

    Args:
        num_inputs: Input channels I.
        max_tokens: Tokens of the largest chunk; a float32 copy of it is kept.
    """

    def __init__(self, num_inputs: int, *, max_tokens: int) -> None:
        self.num_tokens = 0
        self._sum_II = torch.zeros(num_inputs, num_inputs)
        self._copy_TI = torch.empty(max_tokens, num_inputs)

    def add(self, x_TI: Tensor) -> None:
        """Add a chunk of inputs, any float dtype."""
        count = x_TI.shape[0]
        copy_TI = self._copy_TI[:count]
        copy_TI.copy_(x_TI)
        for start in range(0, self._sum_II.shape[0], _BLOCK_WIDTH):
            stop = start + _BLOCK_WIDTH
            self._sum_II[start:stop, start:].addmm_(
                copy_TI[:, start:stop].T, copy_TI[:, start:]
            )
        self.num_tokens += count

    def is_finite(self) -> bool:
        """Whether every input so far was a number; squares on the diagonal tell."""
        return bool(torch.isfinite(self._sum_II.diagonal()).all())

    def mean(self) -> Tensor:
        """X' X / T, float32 [I, I], symmetric; the observer is empty afterwards."""
        mean_II, self._sum_II = self._sum_II, torch.empty(0, 0)
        self._copy_TI = torch.empty(0, 0)
        mean_II.triu_().div_(max(self.num_tokens, 1))
        diagonal_I = mean_II.diagonal().clone()
        mean_II += mean_II.T.clone()
        mean_II.diagonal().copy_(diagonal_I)
        return mean_II
