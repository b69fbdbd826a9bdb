"""
What calibration remembers of a layer's inputs.

`HessianObserver` sums X' X. H is symmetric, so only blocks on and above the diagonal
are computed; the rest is mirrored once at the end. Products are float32 throughout: a
bfloat16 result is not safe, because the inputs of attention's output projection are
nearly rank-deficient and rounding then makes H indefinite (measured: Cholesky fails on
2 of 12 real layers).

`ChannelObserver` keeps what scales are made of: the largest and the mean magnitude of
every channel, and some whole token rows, evenly spaced over all tokens. Its results do
not depend on how the tokens were cut into chunks: magnitudes are compared exactly or
summed in float64, and a row is kept by its own number, not by its place in a chunk.
Sums of products do depend on the chunks, in their last bits.

Both work on the device that the inputs are on, and neither ever stops for a NaN: the
flags are asked for once, at the end.

Shape suffixes: T tokens, I input channels, R rows kept.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from lmi_build.numerics.triangular import mirror

# Width of a block of H, by measurement on AVX-512 (2 threads, chunks of 512 tokens,
# counting the full product: 129 and 153 GFLOP per CPU second at I = 576 and 1536,
# against 103 and 128 for twice the width).
_BLOCK_WIDTH = 288
# Rows kept by default: enough to rank scales by the error on them.
SAMPLE_ROWS = 512


class HessianObserver:
    """
    Sums X' X over chunks of tokens.

    Args:
        num_inputs: Input channels I.
        max_tokens: Tokens of the largest chunk; a float32 copy of it is kept.
        device: Where the sums are kept; the inputs must be there too.
    """

    def __init__(
        self, num_inputs: int, *, max_tokens: int, device: str | torch.device = "cpu"
    ) -> None:
        self.num_tokens = 0
        self._sum_II = torch.zeros(num_inputs, num_inputs, device=device)
        self._copy_TI = torch.empty(max_tokens, num_inputs, device=device)

    def add(self, x_TI: Tensor) -> None:
        """Add a chunk of inputs, any float dtype."""
        count = x_TI.shape[0]
        if x_TI.dtype == torch.float32:
            wide_TI = x_TI
        else:
            wide_TI = self._copy_TI[:count]
            wide_TI.copy_(x_TI)
        for start in range(0, self._sum_II.shape[0], _BLOCK_WIDTH):
            stop = start + _BLOCK_WIDTH
            self._sum_II[start:stop, start:].addmm_(
                wide_TI[:, start:stop].T, wide_TI[:, start:]
            )
        self.num_tokens += count

    def is_finite(self) -> bool:
        """Whether every input so far was a number; squares on the diagonal tell."""
        return bool(torch.isfinite(self._sum_II.diagonal()).all())

    def mean(self) -> Tensor:
        """X' X / T, float32 [I, I], symmetric; the observer is empty afterwards."""
        mean_II, self._sum_II = self._sum_II, self._sum_II.new_empty(0, 0)
        self._copy_TI = self._copy_TI.new_empty(0, 0)
        mean_II.div_(max(self.num_tokens, 1))
        mirror(mean_II)
        return mean_II


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelStats:
    """
    What was seen of a layer's inputs, channel by channel.

    Args:
        absmax_I: float32, largest magnitude.
        mean_abs_I: float32, mean magnitude; empty where it was not asked for.
        sample_RI: Rows in the dtype of the inputs, evenly spaced.
        num_tokens: Tokens seen.
    """

    absmax_I: Tensor
    mean_abs_I: Tensor
    sample_RI: Tensor
    num_tokens: int


class ChannelObserver:
    """
    Magnitudes and some rows of a layer's inputs.

    Rows whose number is a multiple of a stride are kept; whenever there are more than
    `max_rows`, the stride doubles and every other row goes. So the rows kept follow
    from the number of tokens alone, and chunks may come in any order, from several
    threads at once, as long as each says which tokens it holds.

    Args:
        num_inputs: Input channels I.
        max_rows: Rows to keep at most.
        means: Whether mean magnitudes are asked for.
        device: Where the inputs are.
    """

    def __init__(
        self,
        num_inputs: int,
        *,
        max_rows: int = SAMPLE_ROWS,
        means: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_tokens = 0
        self._absmax_I = torch.zeros(num_inputs, device=device)
        count = num_inputs if means else 0
        self._sum_I = torch.zeros(count, device=device, dtype=torch.float64)
        self._max_rows = max_rows
        self._stride = 1
        # Rows kept of each chunk, by the number of the first of them.
        self._rows: dict[int, Tensor] = {}
        self._lock = threading.Lock()

    def add(self, x_TI: Tensor, *, first: int | None = None) -> None:
        """
        Add a chunk of inputs.

        Args:
            x_TI: Any float dtype.
            first: Number of its first token; None is the one after all seen so far.
        """
        if not x_TI.shape[0]:
            return
        peak_I = _peak(x_TI)
        sum_I = None
        if len(self._sum_I):
            sum_I = x_TI.abs().sum(dim=0, dtype=torch.float64)
        with self._lock:
            torch.maximum(self._absmax_I, peak_I, out=self._absmax_I)
            if sum_I is not None:
                self._sum_I += sum_I
            self._keep(x_TI, self.num_tokens if first is None else first)
            self.num_tokens += x_TI.shape[0]

    def _keep(self, x_TI: Tensor, first: int) -> None:
        skipped = -first % self._stride
        if skipped >= x_TI.shape[0]:
            return
        self._rows[first + skipped] = x_TI[skipped :: self._stride].clone()
        while sum(map(len, self._rows.values())) > self._max_rows:
            thinned: dict[int, Tensor] = {}
            for number, row_RI in self._rows.items():
                at = number // self._stride % 2
                if at < len(row_RI):
                    thinned[number + at * self._stride] = row_RI[at::2].clone()
            self._rows = thinned
            self._stride *= 2

    def is_finite(self) -> bool:
        """Whether every input so far was a number."""
        return bool(torch.isfinite(self._absmax_I).all())

    def stats(self) -> ChannelStats:
        """What was seen so far."""
        mean_I = (self._sum_I / max(self.num_tokens, 1)).to(torch.float32)
        rows_RI = self._absmax_I.new_empty(0, self._absmax_I.shape[0])
        if self._rows:
            rows_RI = torch.cat([self._rows[number] for number in sorted(self._rows)])
        return ChannelStats(
            absmax_I=self._absmax_I.clone(),
            mean_abs_I=mean_I,
            sample_RI=rows_RI,
            num_tokens=self.num_tokens,
        )


def _peak(x_TI: Tensor) -> Tensor:
    """
    Largest magnitude of each channel, float32; NaN where there is one.

    Without their sign, numbers of 16 bits are ordered like the integers of their bits,
    and a NaN is above them all: that compares four times as many in the same time.
    """
    if x_TI.dtype.itemsize != 2:  # noqa: PLR2004 - bytes
        return x_TI.abs().amax(dim=0).to(torch.float32)
    bits_TI = x_TI.view(torch.int16).bitwise_and(0x7FFF)
    return bits_TI.amax(dim=0).view(x_TI.dtype).to(torch.float32)
