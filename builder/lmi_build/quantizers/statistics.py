"""
What one pass over a step's inputs leaves for the methods to decide by.

Chunks may come from several threads at once; sums whose last bits hang on the order of
chunks say so, and whoever adds them takes turns.

Shape suffixes: I input channels, T tokens.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from lmi_build.numerics.observers import ChannelObserver, HessianObserver

if TYPE_CHECKING:
    from torch import Tensor


class Statistics:
    """
    What one pass over a step's inputs leaves.

    Args:
        num_inputs: Input channels I.
        max_tokens: Tokens of the largest chunk.
        hessian: Sum X' X.
        channels: Keep channel sizes and a sample of rows.
        means: Keep mean magnitudes as well.
        device: Where the inputs are.
    """

    def __init__(
        self,
        num_inputs: int,
        *,
        max_tokens: int,
        hessian: bool,
        channels: bool,
        means: bool,
        device: torch.device,
    ) -> None:
        self.num_tokens = 0
        self.num_inputs = num_inputs
        self.means = means
        self._lock = threading.Lock()
        self.hessian = (
            HessianObserver(num_inputs, max_tokens=max_tokens) if hessian else None
        )
        self.channels = None
        if channels:
            self.channels = ChannelObserver(num_inputs, means=means, device=device)

    def add(self, x_TI: Tensor, *, first: int | None = None) -> None:
        """
        Take in a chunk.

        Args:
            x_TI: Inputs.
            first: Number of its first token; None is the one after all seen so far.
        """
        with self._lock:
            self.num_tokens += x_TI.shape[0]
        if self.hessian is not None:
            self.hessian.add(x_TI)
        if self.channels is not None:
            self.channels.add(x_TI, first=first)

    @property
    def hangs_on_order(self) -> bool:
        """Whether sums are taken whose last bits hang on the order of chunks."""
        return self.hessian is not None or self.means

    def is_finite(self) -> bool:
        """Whether all inputs so far were numbers, as far as anything looked at them."""
        observers = (self.hessian, self.channels)
        return all(one.is_finite() for one in observers if one is not None)

    def take_hessian(self) -> Tensor:
        """X' X / T [I, I]; the identity where no token came by. Only once."""
        if self.hessian is None or not self.num_tokens:
            return torch.eye(self.num_inputs)
        return self.hessian.mean()
